"""The coding agents as their users start them, against a model on loopback, with homes of their own."""

import os
import pathlib
import subprocess

# Whatever else an agent wants to reach is not there.
DEAD = "http://127.0.0.1:9"


class Agent:
    def __init__(self, name, tool, named, arguments, start):
        """Its tool that runs a command, which argument names the command, and the other arguments."""
        self.name, self.tool, self.named, self.arguments, self.start = name, tool, named, arguments, start

    def run(self, tools, folder, model, seconds=120):
        """Starts the agent once in `folder/work`; what it printed."""
        home, work = folder / "home", folder / "work"
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb", "LANG": "C.UTF-8", "TMPDIR": str(folder),
                       "HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD, "http_proxy": DEAD, "https_proxy": DEAD,
                       "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        command, more = self.start(tools, home, f"http://127.0.0.1:{model.port}")
        process = subprocess.Popen(command, cwd=work, env={**environment, **more}, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            out, _ = process.communicate(timeout=seconds)
            return out
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            out, _ = process.communicate()
            return f"(did not end in {seconds} s)\n{out}"


def claude(tools, home, url):
    program = next(pathlib.Path(tools).glob("node_modules/@anthropic-ai/claude-code-linux-*/claude"))
    return ([str(program), "-p", "go on", "--model", "claude-sonnet-4-5", "--allowedTools", "Bash"],
            {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "sk-ant-none", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
             "DISABLE_AUTOUPDATER": "1"})


def codex(tools, home, url):
    program = pathlib.Path(tools) / "node_modules/.bin/codex"
    provider = f'{{name="scripted",base_url="{url}/v1",wire_api="responses",env_key="SCRIPTED_KEY",request_max_retries=0,stream_max_retries=0}}'
    return ([str(program), "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--dangerously-bypass-hook-trust",
             "-c", f"model_providers.scripted={provider}", "-c", "model_provider=scripted", "-m", "gpt-5.2-codex", "go on"],
            {"SCRIPTED_KEY": "none", "CODEX_HOME": str(home / ".codex")})


def gemini(tools, home, url):
    program = pathlib.Path(tools) / "node_modules/.bin/gemini"
    return ([str(program), "-m", "gemini-2.5-flash", "--approval-mode", "yolo", "--skip-trust", "-p", "go on"],
            {"GEMINI_API_KEY": "none", "GOOGLE_GEMINI_BASE_URL": url, "GEMINI_CLI_TRUST_WORKSPACE": "true", "GEMINI_TELEMETRY_ENABLED": "false"})


def copilot(tools, home, url):
    program = pathlib.Path(tools) / "node_modules/.bin/copilot"
    return ([str(program), "-p", "go on", "--allow-all-tools", "--no-auto-update", "--model", "gpt-5"],
            {"COPILOT_PROVIDER_BASE_URL": url, "COPILOT_PROVIDER_TYPE": "openai", "COPILOT_PROVIDER_API_KEY": "none",
             "COPILOT_MODEL": "gpt-5", "COPILOT_OFFLINE": "true"})


AGENTS = [
    Agent("claude-code", "Bash", "command", {"description": "x"}, claude),
    Agent("codex", "exec_command", "cmd", {}, codex),
    Agent("gemini", "run_shell_command", "command", {"description": "x"}, gemini),
    Agent("copilot", "bash", "command", {"description": "x"}, copilot),
]
