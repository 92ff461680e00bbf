"""Faults seeded into the own backends of the examples: each is a line changed, a rule taken out.

The check that names its rule catches it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """An example with each `line` replaced; `found` is the whole name of the check that fails.

    Where it compares what others sent, `only` names them too.
    """

    example: str
    line: str
    broken: str
    found: str

    @property
    def only(self) -> str:
        """What the names of the checks hold that are to be made; empty for all of them."""
        return {SEEN: "", LATEST: "merge"}.get(self.found, self.found)

    def write(self, examples: Path, folder: Path) -> Path:
        """Write it into a folder, under the example's own name."""
        source = (examples / self.example).read_text()
        assert self.line in source, f"{self.example} has no {self.line!r} any more"
        path = folder / self.example
        path.write_text(source.replace(self.line, self.broken))
        return path

    def __str__(self) -> str:
        return f"{self.example}-{self.broken[:40]}-{self.found}".replace("\n", " ")


SEEN = "the rows that are seen are those that were sent"
LATEST = "the newest rows of a merge are seen"
CHUNKED = [
    # who may ask
    ("hmac.compare_digest(shown, key.encode())", "True", "keys are checked"),
    (
        "hmac.compare_digest(shown, key.encode())",
        "shown[:20] == key.encode()[:20]",
        "keys are checked",
    ),
    ("{DATABASE}{number or ''}", "{DATABASE}", "tenants are apart"),
    # chunks
    ("if stored[0] != text:", "if False:", "other records under a number are refused"),
    ("if stored[0] != text:", "if stored[0][:999] != text[:999]:", "every row of a chunk is kept"),
    (
        "text = f\"[{','.join(records)}]\"",
        "text = f\"[{','.join(records[:1_000])}]\"",
        "every row of a chunk is kept",
    ),
    (
        "text = f\"[{','.join(records)}]\"",
        "text = f\"[{','.join(sorted(records))}]\"",
        "every row of a chunk is kept",
    ),
    (
        "    return lines\n",
        "    return [json.dumps(json.loads(line, parse_int=float)) for line in lines]\n",
        "numbers are exact",
    ),
    ("stored[0] != text", "json.loads(stored[0]) != json.loads(text)", "numbers are exact"),
    (
        '(unpacked(body) if encoding == "gzip" else body).decode()',
        '(unpacked(body) if encoding == "gzip" else body).decode().replace("\\\\u0000", "")',
        "a record may hold any character",
    ),
    ("if line and not line.isspace()", "", "blank lines are no records"),
    ("parse_constant=refuse", "parse_constant=str", "records that cannot be read are refused"),
    ("is not dict:", "is str:", "records that cannot be read are refused"),
    (' or media_type != "application/x-ndjson"', "", "other formats are read or refused with 415"),
    ("if not unpacker.eof:", "if False:", "a body that is cut off is not stored"),
    ("if len(body) < length:", "if False:", "a body that is cut off is not stored"),
    ('raise RefusedError(400, "digest-mismatch")', "raise OSError", "a damaged body is refused"),
    (
        'if self.headers.get("Transfer-Encoding", "").lower() == "chunked":',
        "if False:",
        "a body may come without its length",
    ),
    (
        "WHERE upload_id = ? ORDER BY seq",
        "WHERE upload_id = ? ORDER BY CAST(seq AS TEXT)",
        "every chunk of an upload is kept",
    ),
    (
        "WHERE upload_id = ? ORDER BY seq",
        "WHERE upload_id = ? ORDER BY seq LIMIT 100",
        "every chunk of an upload is kept",
    ),
    # complete
    ("    check(body)\n", "", "a complete that does not fit is refused"),
    (
        'if state == "complete":',
        "if False:",
        "a complete that comes late brings nothing back",
    ),
    ('if state == "superseded":', "if False:", "older content never replaces newer"),
    (
        "if database.execute(state, [upload]).fetchone():",
        "if False:",
        "a finished upload is answered before its chunks",
    ),
    ("if twin and not full:", "if False:", "two attempts are never both seen"),
    ("if twin and not full:", "if twin:", "full is exempt from the key"),
    (
        "        database.execute(rise, [number, source])\n        known_by",
        "        known_by",
        "two attempts are never both seen",
    ),
    ("AND key = ? AND visible", "AND key = ?", "content that comes back is seen again"),
    (
        "WHERE source = ? AND key = ? AND visible",
        "WHERE ? != '' AND key = ? AND visible",
        "installations are apart",
    ),
    (
        'source = json.dumps([body["installation_id"], body["source_key"]])',
        'source = body["source_key"]',
        "installations are apart",
    ),
    (
        'source = json.dumps([body["installation_id"], body["source_key"]])',
        'source = body["installation_id"]',
        "sources are apart",
    ),
    ("number <= highest:", "number < highest:", "older content never replaces newer"),
    ("number <= highest:", "float(number) <= float(highest):", "numbers are exact"),
    ("chained = append and not full", "chained = False", "appends follow the watermark"),
    ("chained = append and not full", "chained = append", "a full append hides what was there"),
    # merge
    (
        "chained = append and not full",
        "chained = wanted == 'append' and not full",
        "merges follow the watermark",
    ),
    ("chained = append and not full", "chained = append", "a full merge hides what was there"),
    ("merge_key != key or ", "", "another key needs full"),
    ('body.get("tombstone")])', "None])", "another key needs full"),
    ("        if None in values:\n", "        if False:\n", "a row without its key is refused"),
    ('        database.execute("DELETE FROM latest WHERE home = ?", [source])\n', "", LATEST),
    ('row.get(body.get("tombstone")) in NOT_DELETED', "True", LATEST),
    ('row.get(body.get("tombstone")) in NOT_DELETED', '"gone" not in row', LATEST),
    ("ORDER BY seq, id", "ORDER BY seq, id DESC", LATEST),
    ("place = [source, canonical(values)]", "place = [source, json.dumps(values)]", LATEST),
    ("place = [source, canonical(values)]", "place = [source, str(values[1])]", LATEST),
    ('parse_int=lambda n: {"#": n}', "parse_int=float", LATEST),
    (
        'canonical(body.get("after")) != watermark',
        'str(body.get("after")) != str(json.loads(watermark))',
        "watermarks keep their type",
    ),
    ("json.dumps(value, sort_keys=True)", "json.dumps(value)", "watermarks keep their type"),
    (
        'canonical(body.get("until") if append else None)',
        "canonical(None)",
        "appends follow the watermark",
    ),
    ("mode != wanted or ", "", "another mode needs full"),
    (" or (counted and of and counted != of)", "", "another mode needs full"),
    ("    if missing:\n", "    if False:\n", "complete names the missing chunks"),
    ("missing[:LISTED]", "missing[:100]", "every chunk of an upload is kept"),
    (
        'if (len(counts), sum(counts.values())) != (body["chunks"], body["records"]):',
        "if False:",
        "totals are compared",
    ),
    (
        '(len(counts), sum(counts.values())) != (body["chunks"], body["records"])',
        'sum(counts.values()) != body["records"]',
        "totals are compared",
    ),
    (
        "SET visible = 0 WHERE source = ?",
        "SET visible = 1 WHERE source = ?",
        SEEN,
    ),
    ("{1,128}", "{1,999}", "paths that do not fit are refused"),
    (
        'raise RefusedError(404, "not-found")\n\n    def',
        "return 200, {}\n\n    def",
        "paths that do not fit are refused",
    ),
    (
        're.fullmatch("[0-9]{1,6}", seq)',
        're.fullmatch("-?[0-9]+", seq)',
        "paths that do not fit are refused",
    ),
    # identity
    ("if (given or 0) < epoch:", "if False:", "an older folder is refused"),
    ("if (given or 0) < epoch:", "if given and given < epoch:", "an older folder is refused"),
    ("if given is not None and given > epoch:", "if False:", "an older folder is refused"),
    (
        'newest in (nonce, body.get("last_nonce"))',
        "newest == nonce",
        "a start that comes again takes nobodys place",
    ),
    (
        'newest in (nonce, body.get("last_nonce"))',
        'newest == body.get("last_nonce")',
        "a start whose answer was lost is known again",
    ),
    ('(nonce != "" and nonce in taken) or ', "", "a start that comes again takes nobodys place"),
    (
        'if body.get("generation") not in (None, generation):',
        "if False:",
        "a start that comes again takes nobodys place",
    ),
    ('body["epoch"] + 1, ', "", "a start whose answer was lost is known again"),
    ('"full_seq": row["full_seq"]', '"full_seq": 0', "a start is given what is known"),
    (
        "self.generation = generation_of(database)",
        "self.generation = uuid.uuid4().hex",
        "every answer names the generation",
    ),
    ('{"by": "upload_key", ', '{"by": "upload_id", ', "a duplicate says how"),
    (
        'raise RefusedError(400, "invalid-request", errors=[{"field": name}])',
        "raise OSError",
        "a complete that does not fit is refused",
    ),
]
IN_NODE = [
    ("timingSafeEqual(digest(`Bearer ${key}`), digest(shown))", "true", "keys are checked"),
    (
        "stored.some((line, n) => line !== lines[n])",
        "false",
        "other records under a number are refused",
    ),
    (
        "const write = (value) =>",
        "const write = (value) => value.source_seq ? JSON.stringify({ ...value, source_seq: "
        "Number(value.source_seq) }) :",
        "numbers are exact",
    ),
    ("Object.keys(value).sort()", "Object.keys(value)", "watermarks keep their type"),
    (".sort((a, b) => a - b)", ".sort()", "every chunk of an upload is kept"),
    ("if (twin && !full)", "if (twin)", "full is exempt from the key"),
    ("alone ? [upload] :", "", "content that comes back is seen again"),
    ("if (given < BigInt(epoch))", "if (false)", "an older folder is refused"),
    ("(source.merged ?? merged) !== merged || ", "", "another key needs full"),
    ("if (values.includes(null))", "if (false)", "a row without its key is refused"),
    ("      rows.delete(key);\n", "", LATEST),
]
SIMPLE = [
    (
        "if not hmac.compare_digest(",
        "if hmac.compare_digest(b'', b'x') and not (",
        "keys are checked",
    ),
    ("if found:", "if False and found:", "the same key is stored once"),
    ("if found and found[1] != digest:", "if False:", "other records under a key are refused"),
    (
        'database.execute("BEGIN IMMEDIATE")\n        rows',
        "rows",
        "the same key at once is stored once",
    ),
    (
        "for record in records]",
        "for record in records[:1_000]]",
        SEEN,
    ),
    (
        "except (ValueError, TypeError, KeyError, RecursionError):",
        "except KeyError:",
        "what is no array is refused",
    ),
]
MUTANTS = [
    Mutant(example, line, broken, found)
    for example, mutants in (
        ("chunked.py", CHUNKED),
        ("chunked.mjs", IN_NODE),
        ("simple.py", SIMPLE),
    )
    for line, broken, found in mutants
]
