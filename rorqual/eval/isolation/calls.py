"""The system calls that generated code may not make, as a seccomp program (BPF, kernel's Documentation/userspace-api/seccomp_filter.rst). No torch.

Everything not named here is allowed; numbers above the newest one known are answered with ENOSYS, so that a new kernel brings no new way out.
"""

from __future__ import annotations

import errno
import struct

_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_NEWEST = 463  # mseal is 462 on every architecture; setxattrat and what follows is newer
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET

# Name: number on x86-64, on aarch64 (-1: not there).
_ALWAYS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "mount": (165, 40), "umount2": (166, 39), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "personality": (135, 92), "lookup_dcookie": (212, 18), "fanotify_init": (300, 262), "vhangup": (153, 58), "iopl": (172, -1),
    "ioperm": (173, -1), "modify_ldt": (154, -1), "uselib": (134, -1), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "memfd_secret": (447, 447), "setdomainname": (171, 162), "sethostname": (170, 161), "statmount": (457, 457),
    "listmount": (458, 458), "set_mempolicy_home_node": (450, 450), "migrate_pages": (256, 238), "move_pages": (279, 239), "vmsplice": (278, 75),
}  # fmt: skip

# Where other processes of the same user are in sight (no namespaces): what reaches them, and System V and POSIX objects with names.
_OTHERS = {
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "inotify_add_watch": (254, 27),
}  # fmt: skip

# Landlock does not govern these; with the user's own uid they would change his files.
_ATTRIBUTES = {
    "chmod": (90, -1), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1), "lchown": (94, -1), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14), "lremovexattr": (198, 15), "utime": (132, -1), "utimes": (235, -1),
    "futimesat": (261, -1), "utimensat": (280, 88), "truncate": (76, 45),
}  # fmt: skip

_SIGNALS = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
}  # fmt: skip
_MEMORY_FILES = {"memfd_create": (319, 279)}


def known(machine: str) -> bool:
    """Whether the numbers of this architecture are here ("x86_64", "aarch64"); elsewhere nothing is run."""
    return machine in _ARCH


def program(machine: str, *, shared: bool, signals: bool, attributes: bool, memory_files: bool) -> bytes:
    """The filter as an array of `struct sock_filter`.

    `shared`: other processes are in sight, so what reaches them is refused; `signals`: processes may be signalled (where the kernel
    confines signals); `attributes`: modes, owners and times of files by path may be changed; `memory_files`: memfd_create is allowed.
    """
    denied = dict(_ALWAYS)
    if shared:
        denied |= _OTHERS
    if not signals:
        denied |= _SIGNALS
    if not attributes:
        denied |= _ATTRIBUTES
    if not memory_files:
        denied |= _MEMORY_FILES
    column = _COLUMN[machine]
    code = [_load(4), _jump(0x15, _ARCH[machine], 1, 0), _give(_KILL), _load(0)]
    if machine == "x86_64":
        code += [_jump(0x35, 0x40000000, 0, 1), _give(_KILL)]  # the x32 numbers are another door to the same calls
    code += [_jump(0x35, _NEWEST, 0, 1), _give(_ERRNO | errno.ENOSYS)]
    for numbers in denied.values():
        if numbers[column] >= 0:
            code += [_jump(0x15, numbers[column], 0, 1), _give(_ERRNO | errno.EPERM)]
    code += [_jump(0x15, 435, 0, 1), _give(_ERRNO | errno.ENOSYS)]  # clone3 hides its flags behind a pointer; libc falls back to clone
    code += [_jump(0x15, (56, 220)[column], 0, 4), _load(16), _jump(0x45, _NAMESPACES, 0, 1), _give(_ERRNO | errno.EPERM), _give(_ALLOW)]
    # socketpair: local and connected only, since a datagram pair can send to any address
    code += [_jump(0x15, (53, 199)[column], 0, 8), _load(24), (0x54, 0, 0, 0xF), _jump(0x15, 1, 2, 0), _jump(0x15, 5, 1, 0)]
    code += [_give(_ERRNO | errno.EPERM), _load(16), _jump(0x15, 1, 1, 0), _give(_ERRNO | errno.EPERM)]
    if shared:  # prlimit64 of oneself alone
        code += [_load(0), _jump(0x15, (302, 261)[column], 0, 3), _load(16), _jump(0x15, 0, 1, 0), _give(_ERRNO | errno.EPERM)]
    code.append(_give(_ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def _load(offset: int) -> tuple[int, int, int, int]:
    """A 32-bit word of `struct seccomp_data`: number at 0, architecture at 4, arguments (low halves) from 16."""
    return (0x20, 0, 0, offset)


def _jump(code: int, value: int, yes: int, no: int) -> tuple[int, int, int, int]:
    """0x15 equal, 0x35 at least, 0x45 any bit; skips `yes` or `no` lines."""
    return (code, yes, no, value)


def _give(action: int) -> tuple[int, int, int, int]:
    return (0x06, 0, 0, action)
