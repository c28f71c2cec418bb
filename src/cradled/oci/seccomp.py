"""Pure. The default seccomp profile: an allow-list of system calls for containers.

Everything not listed fails with EPERM, so software that probes for a call takes its fallback.
Which calls are allowed depends on the container's capabilities: what a capability guards in the
kernel is useful only with it, and without it is only attack surface.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_EPERM, _ENOSYS = 1, 38

# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: making namespaces takes CAP_SYS_ADMIN.
_NAMESPACE_FLAGS = 0x7E020000
# Address families allowed, as (first, how many): all but AF_ALG (38) and AF_VSOCK (40).
_FAMILIES = ((0, 32), (32, 4), (36, 2), (39, 1), (41, 1), (42, 2), (44, 4))
# PER_LINUX, PER_LINUX32, UNAME26, both, and 0xffffffff that only asks.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_PTRACE_SAFE_SINCE = (4, 8)  # older kernels let a tracer change a call after the filter saw it

_ARCHITECTURES = {
    "amd64": ("X86_64", "X86", "X32"),
    "386": ("X86",),
    "arm64": ("ARM", "AARCH64"),
    "arm": ("ARM",),
    "ppc64le": ("PPC64LE",),
    "s390x": ("S390X", "S390"),
    "riscv64": ("RISCV64",),
    "loong64": ("LOONGARCH64",),
}

_BY_ARCHITECTURE = {
    "amd64": "arch_prctl modify_ldt",
    "386": "modify_ldt",
    "arm64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "arm": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "ppc64le": "sync_file_range2 swapcontext",
    "s390x": "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    "riscv64": "riscv_flush_icache riscv_hwprobe",
}

_BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount "
        "mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname "
        "sethostname setns syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": (
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"
    ),
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

_ALWAYS = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir
chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32
fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd
getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32
getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday
getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
listxattrat llistxattr lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules
lsm_set_self_attr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret
mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal
pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv
preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop
semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32
setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr
setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink
symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate
truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64
utimes vfork vmsplice wait4 waitid waitpid write writev"""


def profile(
    capabilities: Collection[str], architecture: str, kernel: tuple[int, int] = (4, 8)
) -> dict[str, Any]:
    """The ``linux.seccomp`` object of a spec.

    ``capabilities`` is the bounding set (``CAP_...``), ``architecture`` as in a platform, and
    ``kernel`` the version of the host's.
    """
    names = set(_ALWAYS.split()) | set(_BY_ARCHITECTURE.get(architecture, "").split())
    for capability in capabilities:
        names.update(_BY_CAPABILITY.get(capability, "").split())
    if kernel >= _PTRACE_SAFE_SINCE:
        names |= {"process_vm_readv", "process_vm_writev", "ptrace"}
    rules = [_rule(sorted(names)), *_socket_rules(), *_personality_rules()]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules += _clone_rules(architecture)
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": _EPERM,
        "architectures": [f"SCMP_ARCH_{name}" for name in _ARCHITECTURES.get(architecture, ())],
        "syscalls": rules,
    }


def _rule(names: list[str], *args: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": _ALLOW}
    return {**rule, "args": list(args)} if args else rule


def _compare(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    """``MASKED_EQ`` asks whether the argument and ``value`` (a mask) is ``second``."""
    comparison = {"index": index, "value": value, "op": f"SCMP_CMP_{op}"}
    return {**comparison, "valueTwo": second} if op == "MASKED_EQ" else comparison


def _socket_rules() -> list[dict[str, Any]]:
    """One masked comparison for each aligned block of families.

    The kernel looks at the low 32 bits only, so must the filter: with an order comparison of the
    whole register, a family with a high bit set would pass and be truncated to a forbidden one.
    """
    return [
        _rule(["socket"], _compare(0, "MASKED_EQ", 0x100000000 - size, first))
        for first, size in _FAMILIES
    ]


def _personality_rules() -> list[dict[str, Any]]:
    return [_rule(["personality"], _compare(0, "EQ", value)) for value in _PERSONALITIES]


def _clone_rules(architecture: str) -> list[dict[str, Any]]:
    """clone without new namespaces; clone3 hides its flags in memory, so libc must fall back."""
    flags = 1 if architecture == "s390x" else 0
    return [
        _rule(["clone"], _compare(flags, "MASKED_EQ", _NAMESPACE_FLAGS, 0)),
        {"names": ["clone3"], "action": _ERRNO, "errnoRet": _ENOSYS},
    ]
