"""Every code block and command of the README, of CONTRIBUTING and of docs/ works, on small examples.

Python runs in order, a page's blocks in one process; configs are loaded; commands run with two steps, or are checked as
far as docs_shell.py says. A page has a folder of its own, with a run in runs/digits and the files that its titles name.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import traceback

import numpy as np
import optional
import pytest
from docs_pages import BLOCKS, READ, ROOT, commands, inline, take_apart
from docs_shell import TRAIN, environment
from docs_shell import run as run_command
from PIL import Image
from processes import Job

from mmfast import cli, config, propose


def blocks(language):
    found = [block for page in BLOCKS.values() for block in page if block.language == language and not block.reason]
    found = [block for block in found if block.language != "bash" or block.page not in OWN_TEST]
    return pytest.mark.parametrize("block", [pytest.param(block, marks=_marks(block)) for block in found], ids=str)


# The my.yaml of pages that show none.
MY_CONFIG = next(block for block in BLOCKS["docs/configuration.md"] if block.title == "my.yaml")

# Pages whose commands follow on one another have a test of their own.
OWN_TEST = {"docs/tutorial.md": "test_tutorial.py"}


def _marks(block):
    """Blocks of docs/ that train and draw are slow: the README's run the same commands."""
    costly = block.language == "bash" and re.search(
        r"^mmfast (check|train|sample|eval|sweep|report|init)\b", block.text, re.M
    )
    return [pytest.mark.slow] if costly and block.page.startswith("docs/") else []


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with runs/digits, of two steps."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "keep_freed_memory", lambda: True)
        assert cli.main(["train", "digits", "--out", str(folder / "runs" / "digits"), *TRAIN]) == 0
    return folder


@pytest.fixture(scope="session")
def folders(trained, tmp_path_factory):
    """Page -> its folder, made once."""
    made = {}

    def folder(page):
        if page not in made:
            made[page] = tmp_path_factory.mktemp(page.replace("/", "-").removesuffix(".md"))
            shutil.copytree(trained, made[page], dirs_exist_ok=True)
            for block in (MY_CONFIG, *BLOCKS[page]):  # a page that shows a my.yaml of its own has that
                if block.title:
                    (made[page] / block.title).write_text(block.text)
        return made[page]

    return folder


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: True)  # it would hold for all tests after this
    monkeypatch.setattr(propose, "step_time", lambda config: 1.0)


def fill(root, modalities):
    """Files of every modality of a config, as data: {kind: folder} takes them."""
    random = np.random.default_rng(0)
    for name, spec in modalities.items():
        folder = root / name / "x"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(12):
            file = folder / f"{i:03d}"
            if spec.kind == "image":
                shape = (spec.size, spec.size, 3) if spec.channels == 3 else (spec.size, spec.size)
                Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(file.with_suffix(".png"))
            elif spec.kind == "mask":
                classes = random.integers(0, spec.classes, (spec.size, spec.size), dtype=np.uint8)
                Image.fromarray(classes).save(file.with_suffix(".png"))
            elif spec.kind == "label":
                file.with_suffix(".txt").write_text(str(i % spec.classes))
            else:
                raise AssertionError(f"no files of a {spec.kind} are made here")


def test_no_block_goes_unseen(capsys):
    found = [block for page in BLOCKS.values() for block in page]
    left_out = [block for block in found if block.reason]
    with capsys.disabled():
        for block in left_out:
            print(f"\nnot run: {block} ({block.reason})")
    kinds = {block.language for block in found}
    assert {"python", "yaml", "bash", "json", "text"} >= kinds and len(found) > 40
    assert len(left_out) <= 6


@pytest.mark.parametrize(
    "text", ["```ruby\nputs 1\n```", "```\nx\n```", "```bash foo\nls\n```", "```bash\nls", "  ```bash"]
)
def test_a_block_that_is_not_understood_is_an_error(text):
    with pytest.raises(ValueError, match="page"):
        take_apart("page", text)


def test_a_reason_belongs_to_the_block_below_it():
    text = "<!-- not run: needs a GPU -->\n\n```bash\nmmfast info\n```\ntext\n```bash\nls && \\\n  ls -l # all\n```\n"
    (left_out, run), prose = take_apart("page", text)
    assert left_out.reason == "needs a GPU" and run.reason == "" and run.line == 8 and "text" in prose
    assert commands(run.text) == [["ls"], ["ls", "-l"]]


@pytest.mark.parametrize(
    "words",
    [
        "rm -rf runs",
        "mmfast train nothing --out x",
        "mmfast sample runs/digits --sampel ddim",
        "pip install '.[more]'",
        "pip install left-pad",
        "pytest tests/none.py",
        "pytest tests/support/truth.py",
        "pytest -m fast",
        "python -m benchmarks.none",
        "python -m benchmarks.ops --seconds 3x",
        "python examples/none.py",
        "OTHER=1 mmfast info",
        "ruff format",
    ],
)
def test_a_command_that_does_not_work_is_an_error(words, tmp_path):
    with pytest.raises((AssertionError, ValueError, ImportError, SystemExit)):
        run_command(commands(words)[0], tmp_path, inline=True)


WITH_PYTHON = [page for page, found in BLOCKS.items() if any(b.language == "python" and not b.title for b in found)]


def run_scripts(jobs, file):
    """Run each (folder, page, script) in a namespace and a folder of its own; into the file goes the traceback of each,
    as JSON."""
    errors = {}
    for folder, page, script in jobs:
        os.chdir(folder)
        sys.path.insert(0, folder)
        try:
            runpy.run_path(script)
            errors[page] = ""
        except BaseException:
            errors[page] = traceback.format_exc()
        sys.path.remove(folder)
    file.write_text(json.dumps(errors))


@pytest.fixture(scope="session")
def errors(folders, tmp_path_factory):
    """Page -> the traceback of its Python, "" for none. One process for all pages: imports take most of the time."""
    jobs = []
    for page in WITH_PYTHON:
        own = [block for block in BLOCKS[page] if block.language == "python" and not block.title and not block.reason]
        source: list[str] = []
        for block in own:  # on the lines that they have in the page, for tracebacks
            source += [""] * (block.line - 1 - len(source)) + block.text.splitlines()
        folder = folders(page)
        script = folder / f"{page.replace('/', '_')}.py"
        script.write_text("\n".join(source) + "\n")
        jobs.append((str(folder), page, str(script)))
    logs = tmp_path_factory.mktemp("pages")
    Job(1, logs, run_scripts, jobs, logs / "errors.json").done()
    return json.loads((logs / "errors.json").read_text())


@pytest.fixture(autouse=True)
def backends_as_they_were():
    """A page may register a backend: no other test should see it."""
    from mmfast.ops import backends

    modules = dict(backends.MODULES)
    yield
    backends.MODULES.clear()
    backends.MODULES.update(modules)
    backends._ADDED.clear()
    for cached in (backends.load, backends.automatic, backends.forced, backends.has_kernel):
        cached.cache_clear()
    backends.LOOKING.update(backends._looking())


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python(page, errors):
    if page == "docs/diffusers.md":
        optional.diffusers()
    assert not errors[page], errors[page]


@blocks("yaml")
def test_yaml(block, folders, monkeypatch):
    python = [other.text for other in BLOCKS[block.page] if other.language == "python"]
    if block.title and any(f'"{block.title}"' in text for text in python):
        return  # test_python loads it
    folder = folders(block.page)
    monkeypatch.chdir(folder)
    (folder / "block.yaml").write_text(block.text)
    chosen = config.load("block.yaml")
    assert chosen.anchor in chosen.modalities


@blocks("json")
def test_json(block, folders):
    shown = [json.loads(line) for line in block.text.splitlines()]
    written = [json.loads(line) for line in (folders(block.page) / "runs/digits/stats.jsonl").read_text().splitlines()]
    assert shown and all(line.keys() == written[0].keys() for line in shown)


CALLS_OF_PYTEST = {
    " ".join(words)
    for page in BLOCKS.values()
    for block in page
    if block.language == "bash"
    for words in commands(block.text)
    if words[0] == "pytest"
}


@pytest.mark.slow
@pytest.mark.parametrize("call", sorted(CALLS_OF_PYTEST))
def test_pytest_finds_tests_where_a_page_says(call):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *call.split()[1:]]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@blocks("bash")
def test_bash(block, folders, monkeypatch):
    if "diffusers" in block.text:
        optional.diffusers()
    folder = folders(block.page)
    monkeypatch.chdir(folder)
    if "my" in block.text and not (folder / "my").exists():
        chosen = config.load("my.yaml")
        fill(folder / chosen.data.root, chosen.modalities)
    found = commands(block.text)
    assert found
    for words in found:
        run_command(words, folder)


@pytest.mark.parametrize("page", [page for page in BLOCKS if inline(page)])
def test_commands_within_the_text(page, tmp_path):
    for text in inline(page):
        for words in commands(text):
            run_command(words, tmp_path, inline=True)


def test_the_front_page_is_one():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    # .ci/run finds the two commands by these.
    assert re.search(r"^pip install .*mmfast train", text, re.M) and re.search(r"^pip install .*pytest", text, re.M)


@pytest.mark.parametrize("page", list(READ))
def test_links_and_pictures_are_there(page):
    links = re.findall(r"\]\(([^)#\s]+)", READ[page][1])
    for link in links:
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link


def test_the_site_holds_every_page():
    nav = (ROOT / "mkdocs.yml").read_text()
    for page in BLOCKS:
        if page != "README.md":
            assert f": {page.removeprefix('docs/')}\n" in nav, page
