import pytest

from cradled import references
from cradled.errors import InvalidArgument
from cradled.references import Reference

SHA = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("registry.example/a/b/c:v1", "registry.example/a/b/c:v1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("Host/app", "Host/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (f"alpine@{SHA}", f"docker.io/library/alpine@{SHA}"),
        (f"alpine:3@{SHA}", f"docker.io/library/alpine@{SHA}"),
        ("a__b/c-d.e--f_g", "docker.io/a__b/c-d.e--f_g:latest"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert references.normalise(text) == expected
    assert references.normalise(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "Alpine",
        "alpine:",
        "alpine:-x",
        "alpine:" + "t" * 129,
        "alpine@sha256:abc",
        "alpine@",
        "a//b",
        "a/-b",
        "a___b",
        "a..b",
        "docker://alpine",
        "https://registry.example/app",
        "-host.io/app",
        "alpine\n",
        "alp ine",
        "0123456789abcdef" * 4,
        "a/" + "b" * 300,
    ],
)
def test_refuses(text: str) -> None:
    with pytest.raises(InvalidArgument, match="image name"):
        references.parse(text)


def test_hint_for_upper_case() -> None:
    with pytest.raises(InvalidArgument, match="must be lower case"):
        references.parse("registry.example/App")


def test_parse_keeps_tag_and_digest() -> None:
    reference = references.parse(f"registry.example/app:1@{SHA}")
    assert reference == Reference("registry.example", "app", "1", SHA)
    assert str(reference) == f"registry.example/app:1@{SHA}"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("docker.io/library/alpine:latest", "alpine:latest"),
        ("docker.io/user/app:1", "user/app:1"),
        ("docker.io/library/a/b:1", "library/a/b:1"),
        ("registry.example/app:1", "registry.example/app:1"),
        (f"docker.io/library/alpine@{SHA}", f"alpine@{SHA}"),
        ("import-2026-01-01", "import-2026-01-01"),
        ("NOT A NAME", "NOT A NAME"),
        (SHA, SHA),
    ],
)
def test_familiar(name: str, short: str) -> None:
    assert references.familiar(name) == short
