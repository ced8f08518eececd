# Trains as the lines above say, on a machine without network, and packs what is sealed:
#
#   bash run.sh
#
# WORK    keeps packages, data, checkpoints and Results between calls, and between bundles; default: work/ beside this file
# OUT     where the packed Results go, for `reproduce unpack` at home; default: out/ beside this file
# PYTHON  the interpreter with torch; default: python3
#
# Stopped or killed at any moment, the same command goes on from its checkpoints.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "${WORK:=$here/work}" "${OUT:=$here/out}"
WORK=$(cd "$WORK" && pwd)
OUT=$(cd "$OUT" && pwd)

if ! "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$python_version')"; then
    echo "error: $("$python" --version 2>&1) found, but the wheels are for Python $python_version: set PYTHON, or bundle with --python-version" >&2
    exit 2
fi

if ! absent=$("$python" -c '
import sys
from importlib.metadata import PackageNotFoundError, version

absent = []
for name in sys.argv[1].split(","):
    try:
        version(name)
    except PackageNotFoundError:
        absent.append(name)
print(", ".join(absent))
sys.exit(bool(absent))' "$image_has"); then
    echo "error: $python lacks $absent, which were not bundled: set PYTHON, or bundle with --image-has and without them" >&2
    exit 2
fi

# Each folder is made aside and renamed when it is whole: a call that is killed here leaves none that looks finished.
aside=$WORK/aside.$$
trap 'rm -rf "$aside"' EXIT
if [ ! -d "$WORK/$site" ]; then
    mkdir -p "$aside/site"
    wheels=("$here"/wheels/*.whl)
    if [ -e "${wheels[0]}" ]; then
        "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-cache-dir \
            --target "$aside/site" --upgrade "${wheels[@]}"
    fi
    mv -T "$aside/site" "$WORK/$site" 2>/dev/null || [ -d "$WORK/$site" ]
fi
if [ ! -d "$WORK/$data" ]; then
    mkdir -p "$aside/data"
    for archive in "$here"/data/*.tar.xz; do
        [ -e "$archive" ] || continue
        "$python" -m tarfile -e "$archive" "$aside/data"
    done
    mv -T "$aside/data" "$WORK/$data" 2>/dev/null || [ -d "$WORK/$data" ]
fi

export PYTHONPATH=$here/code:$WORK/$site PYTHONUNBUFFERED=1 REPRODUCE_DATA=$WORK/$data
if [ -d "$here/methods_outside" ]; then export REPRODUCE_METHODS=$here/methods_outside; fi
cd "$WORK"
mkdir -p runs
for pack in "$here"/packs/*.jsonl.xz; do
    if [ -e "$pack" ]; then "$python" -m reproduce unpack "$pack" --runs runs; fi
done

# Ctrl-C reaches the training too, which writes its checkpoints; what is sealed is packed all the same. A signal to this
# process alone waits until the training has ended: send it to the process group.
trap : INT TERM
status=0
"$python" -m reproduce run "${run[@]}" --runs runs || status=$?
"$python" -m reproduce pack --results runs --output "$OUT"
exit "$status"
