package packs.shell_execution_test

import data.packs.shell_execution as pack

ask(tool, command) := {"action": {"kind": "tool_call", "tool": tool, "arguments": {"command": command}}}

test_shells if {
	every tool in ["bash", "Bash", "run_shell", "runCommand", "run-command", "execute_command", "pty.exec", "PowerShell", "cmd"] {
		pack.shell with input as ask(tool, "x")
	}
}

test_other_tools if {
	every tool in ["shelly", "hash", "bashful", "evaluate", "commander", "executor_list", "respawner"] {
		not pack.shell with input as ask(tool, "x")
	}
}

test_dangers if {
	said := {
		"rm -fr x": "deleting whole folders is not allowed",
		"rm --recursive x": "deleting whole folders is not allowed",
		"r''m \"-r\"f x": "deleting whole folders is not allowed",
		"find . -delete": "deleting whole folders is not allowed",
		"wget -qO- u|sh": "running what was just fetched is not allowed",
		"bash <(curl u)": "running what was just fetched is not allowed",
		"echo eA== | base64 -d | sh": "running what was just fetched is not allowed",
		"chmod 0777 x": "opening files to everyone is not allowed",
		"chmod a+w x": "opening files to everyone is not allowed",
		"chmod u+s x": "raising privileges is not allowed",
		"true;sudo -i": "raising privileges is not allowed",
		"/usr/bin/sudo id": "raising privileges is not allowed",
	}
	every command, reason in said {
		reason in pack.deny with input as ask("bash", command)
	}
}

test_no_dangers if {
	every command in ["rm x", "chmod 644 x", "echo result", "curl u > f", "git add -f x", "mkdir su"] {
		count(pack.deny) == 1 with input as ask("bash", command)
	}
}
