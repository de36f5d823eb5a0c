package packs.destructive_sql_test

import data.packs.destructive_sql as pack

ask(sql) := {"action": {"arguments": {"query": sql}}}

test_code_has_neither_comments_nor_literals if {
	pack.code("SELECT /* a */ 'b'' -- c' , \"d\" -- e\nFROM f") == "select '' , \"\" from f"
}

test_a_comment_in_a_literal_is_none if {
	pack.code("SELECT '/*', x, '*/'") == "select '' , x, '' "
}

test_plain_text_is_not_ambiguous if {
	every sql in [
		"SELECT $1, $2 FROM t WHERE a LIKE '%\\_%'",
		"SELECT a[1], ARRAY['x'] FROM `t`",
		"SELECT 1 -- a note",
	] {
		not pack.ambiguous(sql)
	}
}

test_brackets_deeper_than_are_read if {
	count(pack.deny) > 0 with input as ask("DELETE FROM t WHERE ((((((((a = 1))))))))")
}

test_no_arguments if {
	count(pack.deny) == 0 with input as {"action": {"arguments": {}}}
}

test_other_types_hold_no_sql if {
	count(pack.deny) == 0 with input as {"action": {"arguments": {"query": 5, "sql": null}}}
}
