# ruff: noqa: E501  # a case is a line
"""Common programs that write onto a mount: the options that each needs, and its files.

Each case runs on a mount with only the options that it needs. The result in S3 is compared with the
result of the same command in an ordinary folder, or with the expected one.
"""

import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Store
from tests.mount.mounting import Mount, eventually, mounted

pytestmark = pytest.mark.mount

OVERWRITE, DELETE = "--allow-overwrite", "--allow-delete"
RENAME, APPEND = "--allow-rename", "--allow-append"
IGNORE, KEEP = "--attributes=ignore", "--attributes=keep"
#: Each mount with this option gets its own directory.
STAGED = "--staged-writes"
NONE = ()
ALL = (OVERWRITE, DELETE, RENAME, APPEND)
EDIT = (STAGED, OVERWRITE, DELETE, RENAME)


@dataclass(frozen=True)
class Case:
    """A bash command, run in a new folder of the mount; with `python` a Python script.

    `$IN` is a folder of input. `prepare` runs before, in the same folder, on a mount with all
    permissions. `same` says whether the command writes the same bytes in each run.
    """

    name: str
    command: str
    options: tuple[str, ...] = NONE
    prepare: str = ""
    same: bool = True
    python: bool = False
    modules: tuple[str, ...] = ()
    check: str = ""


CASES = [
    # --- copies ---
    Case("cp", "cp $IN/text copy; cp $IN/tree/1/file ."),
    Case("cp onto a file", "cp $IN/text a", (OVERWRITE,), prepare="echo 1 > a"),
    Case("cp -f onto a file", "cp -f $IN/text a", (OVERWRITE,), prepare="echo 1 > a"),
    Case("cp -r", "cp -r $IN/tree tree"),
    Case("cp -p", "cp -p $IN/text copy"),
    Case("cp --sparse", "cp --sparse=always $IN/text a"),
    Case("mv onto the mount", "cp $IN/text $TMP/moving; mv $TMP/moving moved"),
    Case("mv from the mount", "mv text $TMP/moved; rm $TMP/moved", (DELETE,), prepare="cp $IN/text ."),
    Case("cat", "cat $IN/text $IN/text > both"),
    Case("dd", "dd if=$IN/text of=a bs=64k status=none; dd if=$IN/text of=b bs=1M conv=fsync status=none"),
    Case("dd onto a file", "dd if=$IN/text of=a status=none", (OVERWRITE,), prepare="echo 1 > a"),
    # --- deleting ---
    Case("rm -r", "rm -r tree", (DELETE,), prepare="cp -r $IN/tree tree"),
    Case("find -delete", "find tree -delete", (DELETE,), prepare="cp -r $IN/tree tree"),
    # --- archives ---
    Case("tar c", "tar -C $IN -cf a.tar tree; tar -C $IN -czf a.tgz tree; tar tf a.tar > list", same=False),
    Case("tar x --no-same-permissions", "tar --no-same-permissions --no-same-owner --touch -xf $IN/tree.tar"),
    Case("zip to a pipe", "cd $IN; zip -qr - tree | cat > $OLDPWD/a.zip", same=False, check="unzip -qt a.zip > $TMP/said"),
    Case("gzip -c", "gzip -c $IN/text > a.gz", check="gzip -t a.gz"),
    Case("gzip", "gzip -n text", (DELETE,), prepare="cp $IN/text .", check="gzip -t text.gz"),
    Case("gunzip", "gunzip text.gz", (DELETE,), prepare="gzip -nc $IN/text > text.gz"),
    Case("xz, bzip2, zstd", "for p in xz bzip2 zstd; do $p -1qc $IN/text > a.$p; $p -qdc a.$p > $p; done"),
    # --- text ---
    Case("split", "split -b 300000 $IN/text part-"),
    Case("sort -o", "sort -o sorted $IN/text"),
    Case("tee", "tee one two < $IN/text > three"),
    Case("awk, sed, head", "awk '{print $1}' $IN/text > a; sed s/1/2/ $IN/text > b; head -5 $IN/text > c"),
    Case("redirection onto a file", "echo 2 > a", (OVERWRITE,), prepare="echo 1 > a"),
    Case("truncate -s 0", "truncate -s 0 a", (OVERWRITE,), prepare="echo 1 > a"),
    Case("mkdir -p, touch, rmdir", "mkdir -p d/e/f; touch d/e/f/empty; mkdir g; rmdir g; touch h"),
    # --- networks ---
    Case("curl -o", "curl -sS -o a $URL/text; curl -sS -O $URL/tree.tar"),
    Case("wget -O", "wget -q -O a $URL/text"),
    Case("wget", "wget -q $URL/text", check="cmp text $IN/text"),
    # --- renaming, appending ---
    Case("mv", "mv text other; mkdir d; mv other d; mv d e", (RENAME,), prepare="cp $IN/text ."),
    Case("mv onto a file", "cp $IN/text a; mv a b", (RENAME, OVERWRITE), prepare="echo 1 > b"),
    Case("mv of a tree", "mv tree moved", (RENAME,), prepare="cp -r $IN/tree tree"),
    Case("sed -i", "sed -i s/1/2/ text", (RENAME, OVERWRITE), prepare="cp $IN/text ."),
    Case("patch", "patch -s text $IN/patch", (RENAME, OVERWRITE, DELETE, IGNORE), prepare="cp $IN/text ."),
    Case("appending", "echo 1 > a; for i in 2 3; do echo $i >> a; done; echo 4 | tee -a a > b", (APPEND,)),
    Case("appending to a file", "cat $IN/text >> text", (APPEND,), prepare="cp $IN/text ."),
    Case("one descriptor", "exec 5> a; for i in 1 2 3; do echo $i >&5; done; exec 5>&-"),
    # --- attributes ---
    Case("cp -a", "cp -a $IN/tree tree", (IGNORE,)),
    Case("install", "install -m 600 $IN/text a; install -d d; install -t d $IN/text", (IGNORE,)),
    Case("unzip", "unzip -q $IN/tree.zip", (IGNORE,)),
    Case("tar x", "tar --no-same-owner -xf $IN/tree.tar", (IGNORE,)),
    Case("rsync -a", "rsync -a $IN/tree .; rsync -a $IN/tree .", (RENAME, OVERWRITE, KEEP)),
    Case("rsync -a --delete", "rsync -a --delete $IN/tree/ tree", (RENAME, OVERWRITE, DELETE, KEEP), prepare="cp -r $IN/tree tree; echo 1 > tree/more"),
    Case("shutil.copytree with times", "shutil.copytree(IN / 'tree', 'tree')", (IGNORE,), python=True),
    # --- staged ---
    Case("zip", "zip -qr a.zip $IN/tree; zip -q a.zip $IN/text", EDIT, same=False, check="unzip -qt a.zip > $TMP/said"),
    Case("sqlite3", "sqlite3 a.db 'create table t (a); insert into t values (1); delete from t;'", EDIT, same=False, check="test \"$(sqlite3 a.db 'pragma integrity_check')\" = ok"),
    Case("vim -es", "vim -u NONE -i NONE -es -c '%s/7919/other/' -c wq text || true", EDIT, prepare="cp $IN/text ."),
    Case("rsync --inplace", "rsync --inplace --no-whole-file $IN/text text", EDIT, prepare="echo 1 > text"),
    Case("dd in the middle", "dd if=$IN/text of=text bs=1000 count=1 seek=5 conv=notrunc status=none", EDIT, prepare="cp $IN/text ."),
    Case("truncate", "truncate -s 1000 text; truncate -s +1000 text; truncate -s 5M new", EDIT, prepare="cp $IN/text ."),
    Case("fallocate, then written", "python3 -c \"import os; f = os.open('a', 0o102); os.ftruncate(f, 9000); os.pwrite(f, b'1', 5000)\"", EDIT),
    Case("git clone, commit", "git clone -q --no-hardlinks $IN/repo r; cd r; echo 1 > new; git add new; git -c user.name=a -c user.email=a@example.com commit -qm 2; git -c gc.auto=0 status --short; git fsck 2>/dev/null", (*EDIT, IGNORE), same=False, check="test $(git -C r rev-list --count HEAD) = 2"),
    Case("pip install --target", "python3 -m pip install -q --no-index --no-deps --disable-pip-version-check --root-user-action=ignore --no-compile --target t $IN/a_package-1-py3-none-any.whl", (*EDIT, IGNORE), same=False, check="test -f t/a_package.py"),
    # --- others ---
    Case("git archive", "git -C $IN/repo archive -o $PWD/a.tar HEAD"),
    Case("sqlite3 .dump", "sqlite3 $IN/data.db .dump > dump.sql"),
    Case("shutil.copyfile", "shutil.copyfile(IN / 'text', 'a'); shutil.copyfileobj(open(IN / 'text', 'rb'), open('b', 'wb'))", python=True),
    Case("shutil.rmtree", "shutil.rmtree('tree')", (DELETE,), prepare="cp -r $IN/tree tree", python=True),
    Case("zipfile", "import zipfile\nwith zipfile.ZipFile('a.zip', 'w') as z: z.write(IN / 'text', 'text')", options=EDIT, python=True, same=False, check="unzip -qt a.zip > $TMP/said"),
    Case("tarfile, gzip, json, pickle", "import tarfile, gzip, json, pickle\ntarfile.open('a.tar', 'w').add(IN / 'tree', 'tree')\ngzip.open('a.gz', 'w').write(b'1')\njson.dump([1], open('a.json', 'w'))\npickle.dump([1], open('a.pickle', 'wb'))", python=True, same=False),
    Case("a size set first, then renamed", "import os\nwith open('a.tmp', 'wb') as f:\n    f.truncate(3000000)\n    f.write(b'1' * 2000000)\nos.rename('a.tmp', 'a')\nwith open('b', 'wb') as f: os.posix_fallocate(f.fileno(), 0, 100000); f.write(b'1' * 5000)", (RENAME,), python=True),
    Case("truncate -s of a new file", "truncate -s 10000000 a"),
    Case("numpy.save", "import numpy\nnumpy.save('a.npy', numpy.arange(1000000))\nassert (numpy.load('a.npy') == numpy.arange(1000000)).all()", python=True, modules=("numpy",)),
    Case("numpy.savez", "import numpy\nnumpy.savez('a.npz', a=numpy.arange(1000000))\nassert (numpy.load('a.npz')['a'] == numpy.arange(1000000)).all()", EDIT, python=True, same=False, modules=("numpy",)),
    Case("pandas.to_csv", "import pandas\npandas.DataFrame({'a': range(100000)}).to_csv('a.csv')", python=True, modules=("pandas",)),
    Case("pandas.to_parquet", "import pandas\npandas.DataFrame({'a': range(100000)}).to_parquet('a.parquet')\nassert len(pandas.read_parquet('a.parquet')) == 100000", python=True, modules=("pandas", "pyarrow")),
    Case("pyarrow.parquet.write_table", "import pyarrow, pyarrow.parquet\nt = pyarrow.table({'a': list(range(1000000))})\npyarrow.parquet.write_table(t, 'a.parquet')\nassert pyarrow.parquet.read_table('a.parquet') == t", python=True, modules=("pyarrow",)),
    Case("pyarrow.feather", "import pyarrow, pyarrow.feather\npyarrow.feather.write_feather(pyarrow.table({'a': list(range(100000))}), 'a.feather')", python=True, modules=("pyarrow",)),
    Case("safetensors.save_file", "import numpy\nfrom safetensors.numpy import save_file, load_file\nsave_file({'a': numpy.arange(3000000)}, 'a.safetensors')\nassert (load_file('a.safetensors')['a'] == numpy.arange(3000000)).all()", (RENAME,), python=True, modules=("numpy", "safetensors")),
    Case("duckdb.parquet", "import duckdb\nduckdb.execute('set enable_progress_bar = false')\nduckdb.execute('copy (select range as a from range(1000000)) to \"a.parquet\" (format parquet)')\nassert duckdb.sql('select sum(a) from \"a.parquet\"').fetchall() == [(499999500000,)]", EDIT, python=True, same=False, modules=("duckdb",)),
    Case("duckdb.csv", "import duckdb\nduckdb.execute('set enable_progress_bar = false')\nduckdb.execute('copy (select range as a from range(1000000)) to \"a.csv\"')\nassert duckdb.sql('select count(*) from \"a.csv\"').fetchall() == [(1000000,)]", EDIT, python=True, same=False, modules=("duckdb",)),
    Case("duckdb database", "import duckdb\nwith duckdb.connect('a.duckdb') as d: d.execute('create table t as select range as a from range(100000)')\nwith duckdb.connect('a.duckdb') as d: assert d.execute('select sum(a) from t').fetchall() == [(4999950000,)]", EDIT, python=True, same=False, modules=("duckdb",)),
    Case("datasets.save_to_disk", "import datasets\nd = datasets.Dataset.from_dict({'a': list(range(100000))})\nd.save_to_disk('d')\nassert datasets.load_from_disk('d')['a'][-1] == 99999", python=True, same=False, modules=("datasets",)),
    Case("datasets.load_dataset", "import datasets\nopen('a.csv', 'w').write('a\\n' + '1\\n' * 1000)\nd = datasets.load_dataset('csv', data_files='a.csv', cache_dir='cache')\nassert len(d['train']) == 1000", (RENAME, OVERWRITE, DELETE, IGNORE), python=True, same=False, modules=("datasets",)),
    Case("orbax.checkpoint", "import numpy, pathlib\nimport orbax.checkpoint as ocp\nwith ocp.StandardCheckpointer() as c:\n    c.save(pathlib.Path('c').absolute(), {'a': numpy.arange(1000000)})\n    c.wait_until_finished()\n    assert (c.restore(pathlib.Path('c').absolute())['a'] == numpy.arange(1000000)).all()", (*EDIT, IGNORE), python=True, same=False, modules=("orbax", "jax")),
]  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the input of the commands."""
    folder = tmp_path_factory.mktemp("given")
    text = folder / "text"
    text.write_text("".join(f"{number * 7919 % 200_000} line\n" for number in range(200_000)))
    for number in range(3):
        (folder / f"tree/{number}/inner").mkdir(parents=True)
        (folder / f"tree/{number}/file").write_bytes(os.urandom(1000 * number))
        (folder / f"tree/{number}/inner/a name").write_text("1")
    with zipfile.ZipFile(folder / "a_package-1-py3-none-any.whl", "w") as wheel:
        info = "a_package-1.dist-info"
        wheel.writestr("a_package.py", "here = True\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: a-package\nVersion: 1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    script = """
        tar -cf tree.tar tree; zip -qr tree.zip tree
        sed 's/^7919 .*/other/' text > other; diff -u text other > patch
        sqlite3 data.db 'create table t (a); insert into t values (1)'
        git init -q repo; cd repo; cp ../text .; git add text
        git -c user.name=a -c user.email=a@example.com commit -qm 1
    """
    subprocess.run(["bash", "-c", script], cwd=folder, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def url(given: Path) -> Iterator[str]:
    """A web server for that folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(given))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def mount_with(
    flat_store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[tuple[str, ...]], Mount]]:
    """Mounts by their options, created when needed."""
    made: dict[tuple[str, ...], Mount] = {}
    open_: list[Callable[[], object]] = []

    def get(options: tuple[str, ...]) -> Mount:
        if options not in made:
            folder = tmp_path_factory.mktemp("programs")
            (folder / "stage").mkdir()
            given = [f"{each}={folder}/stage" if each == STAGED else each for each in options]
            manager = mounted(flat_store, folder, "--prefix", "programs/", *given)
            made[options] = manager.__enter__()
            open_.append(lambda: manager.__exit__(None, None, None))
        return made[options]

    yield get
    for close in open_:
        close()


def run(case: Case, command: str, folder: Path, given: Path, url: str) -> None:
    """Run a command of a case in a folder; it must succeed and print nothing."""
    argv = ["bash", "-ec", command]
    if case.python and command == case.command:
        head = f"import pathlib, shutil\nIN = pathlib.Path({str(given)!r})\n"
        argv = [sys.executable, "-c", head + command]
    environment = os.environ | {"IN": str(given), "URL": url, "TMP": str(given.parent)}
    environment |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        argv,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def files(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def objects(store: Store, prefix: str) -> dict[str, bytes]:
    """Return all objects below a prefix."""
    client = store.client()
    answer = client.list_objects_v2(Bucket=store.bucket, Prefix=prefix)
    keys = [each["Key"] for each in answer.get("Contents", [])]
    return {
        key[len(prefix) :]: client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
        for key in keys
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_program(
    case: Case,
    mount_with: Callable[[tuple[str, ...]], Mount],
    flat_store: Store,
    given: Path,
    url: str,
    tmp_path: Path,
) -> None:
    """The program succeeds, and its files are in S3."""
    for module in case.modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the package {module} is not installed")
    program = case.command.split()[0]
    known = case.python or program in ("cd", "exec", "for") or shutil.which(program)
    if not known:
        pytest.skip(f"{program} is not installed")
    mount, name = mount_with(case.options), "".join(filter(str.isalnum, case.name))
    folder, ordinary = mount.path / name, tmp_path / "ordinary"
    ordinary.mkdir()
    folder.mkdir()
    if case.prepare:
        anything = mount_with(ALL).path / name
        anything.mkdir(exist_ok=True)
        for each in (anything, ordinary):
            run(case, case.prepare, each, given, url)
        wanted = files(ordinary)
        eventually(lambda: objects(flat_store, f"programs/{name}/") == wanted)
    run(case, case.command, folder, given, url)
    if case.same:
        run(case, case.command, ordinary, given, url)
    expected = files(ordinary if case.same else folder)
    eventually(lambda: objects(flat_store, f"programs/{name}/") == expected)
    assert files(folder) == expected
    if case.check:
        run(case, case.check, folder, given, url)
