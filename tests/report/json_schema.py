"""The part of JSON Schema that ``docs/metrics.schema.json`` uses; a keyword that is not known here is a KeyError."""

import re

_TYPES = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float), "null": (type(None),),
    "boolean": (bool,),
}  # fmt: skip
_WORDS = {"$schema", "$defs", "title", "description", "properties", "required", "additionalProperties", "items"}


def faults(value, schema, root=None, path="metrics"):
    """Sentences on where ``value`` is not as ``schema`` says."""
    root = root or schema
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, path)
    found = [f"{path}: {word}" for word in set(schema) - _WORDS if not _CHECKS[word](value, schema[word])]
    if isinstance(value, dict):
        found += [f"{path}.{name}: missing" for name in schema.get("required", ()) if name not in value]
        for name, inner in value.items():
            rule = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            found += faults(inner, rule, root, f"{path}.{name}") if rule else []
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            found += faults(inner, schema["items"], root, f"{path}[{number}]")
    return found


def _is_type(value, names):
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in ([names] if isinstance(names, str) else names))


_CHECKS = {
    "type": _is_type,
    "enum": lambda value, known: value in known,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "minimum": lambda value, least: value >= least,
    "maximum": lambda value, most: value <= most,
    "exclusiveMinimum": lambda value, least: value > least,
    "minItems": lambda value, least: len(value) >= least,
}
