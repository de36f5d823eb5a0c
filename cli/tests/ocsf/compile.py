"""Compiles the three OCSF classes that `aegis audit export --ocsf` writes to one JSON Schema.

    python3 compile.py PATH/TO/ocsf-schema > classes.json

Reads a checkout (or a bare clone) of https://github.com/ocsf/ocsf-schema (Apache-2.0). Strict: members that
the classes do not have are refused, and so are objects that are not listed below. `$comment` says of which
commit it is. Needed again only for another version of OCSF.
"""

import json
import subprocess
import sys

CLASSES = ["application/api_activity", "iam/entity_management", "application/application_lifecycle"]
OBJECTS = [
    "actor", "ai_agent", "api", "application", "attestation", "authorization", "fingerprint", "managed_entity",
    "metadata", "network_endpoint", "object", "policy", "prev_event", "product", "request", "resource_details",
    "response", "service", "trace", "user",
]
TYPES = {
    "boolean_t": {"type": "boolean"}, "integer_t": {"type": "integer"}, "long_t": {"type": "integer"},
    "timestamp_t": {"type": "integer"}, "float_t": {"type": "number"}, "json_t": {},
}

repository = sys.argv[1]


def git(*args):
    return subprocess.run(["git", "-C", repository, *args], check=True, capture_output=True, text=True).stdout


def read(path):
    return json.loads(git("show", f"HEAD:{path}.json"))


DICTIONARY = read("dictionary")["attributes"]
FILES = {(path.split("/")[0], path.rsplit("/", 1)[-1]): path
         for path in git("ls-tree", "-r", "--name-only", "HEAD").split() if path.startswith(("objects/", "events/"))}
CATEGORIES = read("categories")["attributes"]


def attributes_of(raw):
    own = dict(raw.get("attributes", {}))
    included = own.pop("$include", [])
    merged = {}
    for path in included:
        merged.update(read(path.removesuffix(".json"))["attributes"])
    for name, attribute in own.items():
        merged[name] = combine(merged.get(name, {}), attribute)
    return merged


def combine(base, more):
    both = {**base, **more}
    if "enum" in base and "enum" in more:
        both["enum"] = {**base["enum"], **more["enum"]}
    return both


def whole(folder, name):
    """A class or an object with what it inherits."""
    raw = read(FILES[folder, f"{name}.json"].removesuffix(".json"))
    attributes, constraints, category = {}, {}, raw.get("category")
    if raw.get("extends"):
        attributes, constraints, above = whole(folder, raw["extends"])
        category = category or above
    for key, attribute in attributes_of(raw).items():
        attributes[key] = combine(attributes.get(key, {}), attribute)
    return attributes, {**constraints, **raw.get("constraints", {})}, category


def schema(folder, name, fixed=None):
    attributes, constraints, _ = whole(folder, name)
    properties, required = {}, []
    for key, attribute in attributes.items():
        attribute = combine(DICTIONARY.get(key, {}), attribute)
        if "@deprecated" in attribute:
            continue
        kind = attribute.get("type", "string_t")
        if kind in TYPES:
            value = dict(TYPES[kind])
        elif kind.endswith("_t"):
            value = {"type": "string"}
        elif kind in OBJECTS:
            value = {"$ref": f"#/$defs/{kind}"}
        else:
            continue
        if kind == "integer_t" and attribute.get("enum"):
            value = {"enum": sorted(int(number) for number in attribute["enum"])}
        properties[key] = {"type": "array", "items": value} if attribute.get("is_array") else value
        if attribute.get("requirement") == "required":
            required.append(key)
    properties.update(fixed or {})
    made = {"type": "object", "properties": properties, "required": sorted(required),
            "additionalProperties": False}
    if "at_least_one" in constraints:
        made["anyOf"] = [{"required": [key]} for key in constraints["at_least_one"]]
    return made


def event(path):
    name = path.rsplit("/", 1)[-1]
    raw = read(f"events/{path}")
    category = CATEGORIES[whole("events", name)[2]]["uid"]
    uid = category * 1000 + raw["uid"]
    return schema("events", name, {"class_uid": {"const": uid}, "category_uid": {"const": category},
                         "type_uid": {"type": "integer", "minimum": uid * 100, "maximum": uid * 100 + 99}})


defs = {name: schema("objects", name) for name in OBJECTS if name != "object"}
defs["object"] = {"type": "object"}
commit = git("rev-parse", "HEAD").strip()
version = read("version")["version"]
print(json.dumps({
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$comment": f"compiled by compile.py from ocsf-schema {version}, commit {commit}; Apache-2.0",
    "oneOf": [event(path) for path in CLASSES],
    "$defs": defs,
}, indent=None, separators=(",", ":"), sort_keys=True))
