"""What the handler answers: the vendor's own test."""

from pathlib import Path

from catalogzero.testing import serving

{{ cookiecutter.module_path | import_line(cookiecutter.class_name) }}


async def test_files_below_the_folder_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "one.csv").write_text("12345", encoding="utf-8")
    (tmp_path / "a" / "b" / "two.csv").write_text("123", encoding="utf-8")

    async with serving({{ cookiecutter.class_name }}(folder=tmp_path)) as at:
        assert await at.client.call("folder_size") == {"files": 2, "bytes": 8}
