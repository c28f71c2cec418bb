import pytest

from cradled.errors import InvalidArgument
from cradled.oci import platforms
from cradled.oci.platforms import Platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/amd64/v1", Platform("linux", "amd64")),
        ("linux/amd64/v3", Platform("linux", "amd64", "v3")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/aarch64/8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/arm/5", Platform("linux", "arm", "v5")),
        ("linux/armhf", Platform("linux", "arm", "v7")),
        ("linux/armel", Platform("linux", "arm", "v6")),
        ("linux/i386", Platform("linux", "386")),
        ("macos/arm64", Platform("darwin", "arm64")),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", "", "10.0.17763")),
        (
            "windows(10.0)+win32k+x/amd64",
            Platform("windows", "amd64", "", "10.0", ("win32k", "x")),
        ),
    ],
)
def test_parse(text: str, expected: Platform) -> None:
    assert platforms.parse(text) == expected
    assert platforms.parse(str(expected)) == expected


def test_one_part_takes_the_rest_from_the_host() -> None:
    host = platforms.default()
    assert platforms.parse("linux") == host
    assert platforms.parse("windows").architecture == host.architecture
    assert platforms.parse("arm64") == Platform("linux", "arm64")


@pytest.mark.parametrize("text", ["", "linux/", "/amd64", "a/b/c/d", "nosuch", "linux/a b"])
def test_refuses(text: str) -> None:
    with pytest.raises(InvalidArgument, match="platform"):
        platforms.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", ["linux/amd64", "linux/386"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]),
        ("linux/arm/v6", ["linux/arm/v6", "linux/arm/v5"]),
        (
            "linux/arm64",
            ["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
        ),
        (
            "darwin/arm64/v9.1",
            [f"darwin/arm64{v}" for v in ("/v9.1", "/v9")]
            + [f"darwin/arm64/v8.{m}" for m in range(6, 0, -1)]
            + ["darwin/arm64"],
        ),
        ("linux/s390x", ["linux/s390x"]),
    ],
)
def test_preference(text: str, expected: list[str]) -> None:
    assert [str(p) for p in platforms.preference(platforms.parse(text))] == expected


def test_rank_counts_features_and_versions() -> None:
    wanted = [Platform("windows", "amd64", "", "10.0", ("win32k",)), Platform("linux", "amd64")]
    assert platforms.rank(wanted, Platform("linux", "x86_64")) == 1
    assert platforms.rank(wanted, Platform("windows", "amd64")) == 0
    assert platforms.rank(wanted, Platform("windows", "amd64", "", "10.0")) == 0
    assert platforms.rank(wanted, Platform("windows", "amd64", "", "11.0")) is None
    assert platforms.rank(wanted, Platform("windows", "amd64", "", "", ("other",))) is None
    assert platforms.rank(wanted, Platform("linux", "arm64")) is None
