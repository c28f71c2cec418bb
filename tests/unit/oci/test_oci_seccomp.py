from typing import Any

from cradled.oci import capabilities, seccomp


def names(profile: dict[str, Any]) -> set[str]:
    """All calls allowed unconditionally."""
    rules = (r for r in profile["syscalls"] if r["action"] == "SCMP_ACT_ALLOW" and "args" not in r)
    return {name for rule in rules for name in rule["names"]}


def allows_socket(profile: dict[str, Any], register: int) -> bool:
    """Evaluate the rules for ``socket`` as the kernel would."""
    rules = [r for r in profile["syscalls"] if "socket" in r["names"]]
    assert all(arg["op"] == "SCMP_CMP_MASKED_EQ" for r in rules for arg in r["args"])
    return any(all(register & a["value"] == a["valueTwo"] for a in r["args"]) for r in rules)


def test_default_denies_what_reaches_outside() -> None:
    profile = seccomp.profile(capabilities.DEFAULT, "amd64")
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    allowed = names(profile)
    assert {"read", "execve", "arch_prctl", "chroot", "openat2", "ptrace"} <= allowed
    denied = {"mount", "unshare", "setns", "bpf", "reboot", "init_module", "keyctl", "clone"}
    denied |= {"io_uring_setup", "kexec_load", "open_by_handle_at", "clone3", "perf_event_open"}
    assert denied.isdisjoint(allowed)


def test_clone_asks_for_flags_and_clone3_looks_absent() -> None:
    rules = seccomp.profile(capabilities.DEFAULT, "amd64")["syscalls"]
    clone = next(r for r in rules if r["names"] == ["clone"])
    assert clone["args"] == [
        {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    ]
    clone3 = next(r for r in rules if r["names"] == ["clone3"])
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    s390 = seccomp.profile((), "s390x")["syscalls"]
    assert next(r for r in s390 if r["names"] == ["clone"])["args"][0]["index"] == 1


def test_capabilities_open_their_calls() -> None:
    profile = seccomp.profile(["CAP_SYS_ADMIN", "CAP_SYS_TIME"], "amd64")
    assert {"mount", "unshare", "clone", "clone3", "clock_settime"} <= names(profile)
    assert not [r for r in profile["syscalls"] if r["names"] == ["clone3"]]
    assert "chroot" not in names(profile)


def test_ptrace_needs_a_kernel_that_filters_it_safely() -> None:
    assert "ptrace" not in names(seccomp.profile((), "amd64", (4, 7)))
    assert "ptrace" in names(seccomp.profile(["CAP_SYS_PTRACE"], "amd64", (4, 7)))


def test_socket_families() -> None:
    profile = seccomp.profile((), "amd64")
    denied = {family for family in range(48) if not allows_socket(profile, family)}
    assert denied == {38, 40}
    # The kernel truncates the register: high bits must not smuggle a family in.
    assert not allows_socket(profile, 1 << 32 | 38)
    assert not allows_socket(profile, 1 << 31 | 38)


def test_each_call_is_named_once() -> None:
    always = seccomp.profile(capabilities.ALL, "arm64")["syscalls"][0]["names"]
    assert always == sorted(set(always))
    assert len(always) > 380
