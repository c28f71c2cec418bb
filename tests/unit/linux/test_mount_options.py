"""Option words, mountinfo lines and layer lists: the pure half of linux.mount."""

import pytest

from cradled.linux import mount
from cradled.linux.mount import MountInfo, parse_options, split_layers


def test_words_become_flags_and_the_rest_is_data() -> None:
    options = parse_options(["rbind", "ro", "nosuid", "lowerdir=/a:/b", "index=off", "xyz"])
    assert options.flags == mount.MS_BIND | mount.MS_REC | mount.MS_RDONLY | mount.MS_NOSUID
    assert options.data == ["lowerdir=/a:/b", "index=off", "xyz"]
    assert options.propagation == 0
    assert not options.loop


def test_a_later_word_wins() -> None:
    assert parse_options(["ro", "rw"]).flags == 0
    assert parse_options(["ro", "rw"]).cleared == mount.MS_RDONLY
    options = parse_options(["rw", "ro"])
    assert (options.flags, options.cleared) == (mount.MS_RDONLY, 0)
    assert parse_options(["noatime", "relatime"]).flags == mount.MS_RELATIME


def test_words_that_are_neither_flag_nor_data() -> None:
    options = parse_options(["loop", "uidmap=0:100000:65536", "gidmap=0:1:2", "rslave", ""])
    assert options.loop
    assert options.uidmap == "0:100000:65536"
    assert options.gidmap == "0:1:2"
    assert options.propagation == mount.MS_SLAVE | mount.MS_REC
    assert options.data == []


def test_an_unhandled_private_word_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"X-containerd\.mkdir\.path=/x"):
        parse_options(["X-containerd.mkdir.path=/x"])


def test_mountinfo_line() -> None:
    line = r"36 35 98:0 /a\040b /mnt/x\011\134y rw,noatime master:1 - ext3 /dev/\043 rw,errors=c"
    entry = MountInfo(line)
    assert (entry.id, entry.parent, entry.type) == (36, 35, "ext3")
    assert (entry.root, entry.target, entry.source) == ("/a b", "/mnt/x\t\\y", "/dev/#")
    assert entry.options == ["rw", "noatime"]
    assert entry.super_options == ["rw", "errors=c"]


def test_mountinfo_line_without_optional_fields() -> None:
    assert MountInfo("1 2 0:3 / /proc rw - proc none rw").type == "proc"


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("/a", ["/a"]),
        ("/a:/b:/c", ["/a", "/b", "/c"]),
        (r"/a\:b:/c\\d", ["/a:b", "/c\\d"]),
    ],
)
def test_split_layers(text: str, layers: list[str]) -> None:
    assert split_layers(text) == layers
