package packs.external_writes_test

import data.packs.external_writes as pack

ask(provenance) := {
	"action": {"kind": "file_write", "resource": "/etc/motd", "arguments": {}},
	"provenance": provenance,
}

test_content_signed_with_high_trust if {
	count(pack.deny) == 0 with input as ask({"signed": "content", "trust": 900})
}

test_a_signed_intent_is_not_enough if {
	count(pack.deny) == 1 with input as ask({"signed": "intent", "trust": 1000})
}

test_too_little_trust if {
	count(pack.deny) == 1 with input as ask({"signed": "content", "trust": 899})
}

test_no_trust if {
	count(pack.deny) == 1 with input as ask({"signed": "content"})
}

test_no_provenance if {
	count(pack.deny) == 1 with input as {"action": {"kind": "file_write", "resource": "/etc/motd", "arguments": {}}}
}
