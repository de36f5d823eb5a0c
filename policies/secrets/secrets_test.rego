package packs.secrets_test

import data.packs.secrets as pack

said(arguments) := result if {
	result := pack.deny with input as {"action": {"arguments": arguments}}
}

test_each_shape_is_found if {
	aws := concat("", ["AKIA", "IOSFODNN7EXAMPLE"])
	said({"x": aws}) == {"the arguments hold what looks like an AWS access key"}
	said({"x": concat("", ["sk_", "live_0123456789abcdef"])}) == {"the arguments hold what looks like a Stripe key"}
	said({"x": concat("", ["glpat-", "0123456789abcdefghij"])}) == {"the arguments hold what looks like a GitLab token"}
	said({"x": concat("", ["xoxb-", "0123456789-abc"])}) == {"the arguments hold what looks like a Slack token"}
	said({"x": concat("", ["AIza", "0123456789abcdefghijklmnopqrstuvwxy"])}) == {"the arguments hold what looks like a Google API key"}
}

test_reasons_never_quote if {
	every reason in said({"password": "correct-horse"}) {
		not contains(reason, "horse")
	}
}

test_placeholders if {
	every text in ["password=$PASSWORD", "password: {{ password }}", "api_key=xxxxxxxxxxxx", "password=********", "password = [redacted]"] {
		said({"x": text}) == set()
	}
}
