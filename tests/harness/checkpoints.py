"""An OCI runtime that makes checkpoints, and restores from them, where criu cannot.

It writes and reads what stands for criu's images, and hands all else on to runc. A file ``refuse``
beside it has it refuse.
"""

from __future__ import annotations

from pathlib import Path

RUNTIME = """#!/bin/sh
flags=
while :; do
    case $1 in
    --root | --log | --log-format) flags="$flags $1 $2"; [ $1 = --log ] && log=$2; shift 2 ;;
    --systemd-cgroup) flags="$flags $1"; shift ;;
    *) break ;;
    esac
done
command=$1
shift
fail() {
    echo "{\\"level\\":\\"error\\",\\"msg\\":\\"$1\\"}" >> $log
    exit 1
}
[ $command = checkpoint ] || [ $command = restore ] || exec runc $flags $command "$@"
leave=
while [ $# -gt 1 ]; do
    case $1 in
    --image-path) image=$2; shift ;;
    --work-path) work=$2; shift ;;
    --bundle) bundle=$2; shift ;;
    --pid-file) pid=$2; shift ;;
    --leave-running) leave=yes ;;
    esac
    shift
done
if [ $command = checkpoint ]; then
    mkdir -p "$work" || fail "no directory to work in"
    cat $(dirname $0)/refuse 2> /dev/null && fail "criu refuses"
    mkdir -p $image/deep && echo "pages of $1" > $image/deep/pages-1.img || fail "cannot write"
    [ $leave ] || runc $flags kill $1 KILL
else
    [ -s $image/deep/pages-1.img ] || fail "no pages"
    cp $image/deep/pages-1.img $bundle/rootfs/restored
    runc $flags create --bundle $bundle --pid-file $pid $1 && runc $flags start $1
fi
"""


def write(directory: Path) -> Path:
    """The runtime, as a program of a name that is not runc's own."""
    path = directory / "runc-and-criu"
    path.write_text(RUNTIME)
    path.chmod(0o755)
    return path
