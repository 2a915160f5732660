"""Filter of system calls (seccomp): one process, no network, no signals to others, no memory outside the limits.

The filter is made with libseccomp, which Debian, Ubuntu and Fedora install by default. It denies rather than allows,
so that a new Python or C library does not break programs; the sandbox's namespaces contain what it lets through.
"""

import ctypes
import errno
import functools
import os

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQUAL, _NOT_EQUAL, _MASKED_EQUAL = 4, 1, 7
_CLONE_THREAD = 0x00010000
_F_SETSIG, _F_SETOWN, _F_SETOWN_EX = 10, 8, 15
# Names that this machine does not have are skipped.
_DENIED = """
fork vfork kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal pidfd_getfd ptrace
process_vm_readv process_vm_writev process_madvise kcmp
socket connect bind listen accept accept4 socketcall
memfd_create memfd_secret shmget shmat msgget semget semtimedop mq_open io_uring_setup io_setup
setrlimit setpriority ioprio_set sched_setaffinity sched_setscheduler sched_setattr sched_setparam
mount umount2 move_mount open_tree fsopen fsmount fspick mount_setattr pivot_root chroot unshare setns
bpf perf_event_open userfaultfd keyctl add_key request_key personality mknod mknodat
reboot swapon swapoff kexec_load kexec_file_load init_module finit_module delete_module acct quotactl syslog
settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname open_by_handle_at fanotify_init
setuid setgid setreuid setregid setresuid setresgid setgroups capset
"""


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("left", ctypes.c_uint64),
        ("right", ctypes.c_uint64),
    ]


@functools.cache
def _library() -> ctypes.CDLL:
    """Load libseccomp. Raises ``OSError`` if it is not installed."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    return library


class SyscallFilter:
    """A filter that is made once and used for many processes.

    Raises:
        OSError: libseccomp is not installed, or refuses a rule.
    """

    def __init__(self) -> None:
        self._library = _library()
        self._context = self._library.seccomp_init(_ALLOW)
        for name in _DENIED.split():
            self._deny(name, errno.EPERM)
        self._deny("clone3", errno.ENOSYS)  # the C library then uses clone, whose flags a filter can read
        self._deny("clone", errno.EPERM, _Comparison(0, _MASKED_EQUAL, _CLONE_THREAD, 0))  # threads are allowed
        self._deny("prlimit64", errno.EPERM, _Comparison(0, _NOT_EQUAL, 0, 0))  # of another process
        self._deny("prlimit64", errno.EPERM, _Comparison(2, _NOT_EQUAL, 0, 0))  # to another limit
        for command in (_F_SETSIG, _F_SETOWN, _F_SETOWN_EX):  # input would send any signal to any process
            self._deny("fcntl", errno.EPERM, _Comparison(1, _MASKED_EQUAL, 0xFFFFFFFF, command))

    def _deny(self, name: str, error: int, *comparisons: _Comparison) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        array = (_Comparison * len(comparisons))(*comparisons)
        code = self._library.seccomp_rule_add_array(self._context, _ERRNO | error, number, len(comparisons), array)
        if code < 0 and number >= 0:
            raise OSError(-code, f"libseccomp refuses the rule for {name}")

    def load(self) -> None:
        """Apply the filter to this process and its children, for good.

        Raises:
            OSError: the kernel refuses it.
        """
        if (code := self._library.seccomp_load(self._context)) < 0:
            raise OSError(-code, os.strerror(-code))

    def program(self) -> bytes:
        """Return the filter as a program for the kernel, as ``bwrap --seccomp`` reads it."""
        descriptor = os.memfd_create("filter")
        try:
            if (code := self._library.seccomp_export_bpf(self._context, descriptor)) < 0:
                raise OSError(-code, os.strerror(-code))
            return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)
