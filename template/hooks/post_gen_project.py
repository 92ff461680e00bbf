"""Take away what was not chosen, record what was generated, and begin the git history."""

import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

ANSWERS = json.loads({{ cookiecutter | jsonify | quoted }})
PACKAGING, CI = ANSWERS["packaging"], ANSWERS["ci"]
IS_PROCESSOR = ANSWERS["kind"] == "processor"
UNWANTED = {
    f"src/{ANSWERS['__package_dir']}/sample.csv": not IS_PROCESSOR,
    "tests/test_process.py": not IS_PROCESSOR,
    "tests/test_handler.py": IS_PROCESSOR,
    "deploy": PACKAGING not in ("docker", "both"),
    ".github": CI != "github",
    ".gitlab-ci.yml": CI != "gitlab",
}
RECORD = Path(".catalogzero")


def prune():
    """Take away the files that belong to other choices, and what an installer compiled."""
    for folder in list(Path().rglob("__pycache__")):
        shutil.rmtree(folder)
    for name, unwanted in UNWANTED.items():
        path = Path(name)
        if unwanted and path.is_dir():
            shutil.rmtree(path)
        elif unwanted:
            path.unlink(missing_ok=True)


def record():
    """Keep the answers and the files as generated: `catalogzero update` starts from them."""
    files = sorted(path for path in Path().rglob("*") if path.is_file())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            info = zipfile.ZipInfo(path.as_posix())
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (path.stat().st_mode & 0o777) << 16
            archive.writestr(info, path.read_bytes())
    RECORD.mkdir()
    answers = {key: value for key, value in ANSWERS.items() if not key.startswith("_")}
    document = {"template_version": ANSWERS["__template_version"], "answers": answers}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (RECORD / "template.json").write_text(text, encoding="utf-8")
    (RECORD / "generated.zip").write_bytes(packed.getvalue())


def git(*arguments):
    """Whether a git command succeeded, quietly."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def begin_history():
    """Make a repository and its first commit, where git knows who commits, and none is around."""
    known = git("var", "GIT_AUTHOR_IDENT") and git("config", "user.email")
    if not known or git("rev-parse", "--is-inside-work-tree"):
        return
    commit = ("commit", "-q", "-m", "Start from the catalogzero template")
    if git("init", "-q", "-b", "main") and git("add", "-A"):
        git("-c", "commit.gpgsign=false", *commit)


prune()
record()
begin_history()
