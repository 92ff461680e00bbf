"""Refuse bad answers with a sentence each, before a file is written."""

import json
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, {{ cookiecutter._repo_dir | quoted }})

from template_answers import faults

ANSWERS = json.loads({{ cookiecutter | jsonify | quoted }})

found = faults(ANSWERS)
for sentence in found:
    print(sentence, file=sys.stderr)
sys.exit(1 if found else 0)
