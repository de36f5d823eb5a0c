package packs.path_traversal_test

import data.packs.path_traversal as pack

ask(path) := {"action": {"arguments": {"path": path}}}

test_going_up if {
	every path in ["..", "../a", "a/..", "a/../b", "a\\..\\b", "a/ ../b"] {
		count(pack.deny) == 1 with input as ask(path)
	}
}

test_dots_in_names if {
	every path in ["a..b", "...", "a/.../b", "..a", ".a", "./a"] {
		count(pack.deny) == 0 with input as ask(path)
	}
}

test_the_resource_is_looked_at if {
	count(pack.deny) == 1 with input as {"action": {"resource": "D:x", "arguments": {}}}
}
