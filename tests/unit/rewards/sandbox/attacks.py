"""Hostile programs that try to leave the sandbox or to bring it down, and how each of them ends.

A program finds these names: `SECRET_FILE`, a file that the caller may read; `OUTSIDE`, a folder in which it may write;
`PORT`, `SOCKET` and `ABSTRACT`, where the test listens; `CALLER` and `VICTIM`, processes of the same user; and `tell`,
which ends it with a text that the test sees. A program that reaches its aim calls `tell("ESCAPED")`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hf_rlae.rewards.sandbox.outcomes import Outcome

ESCAPED = "ESCAPED"
MARK = "hf-rlae-escaped"
"""A part of the names of all files that these programs try to make elsewhere."""
KEY = 0x5AFE01
"""The key of the shared memory and the queues that they try to make."""

PRELUDE = """\
import os as _os
def tell(text):
    raise type(str(text), (Exception,), {})
def syscall(number, *arguments):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return libc.syscall(ctypes.c_long(number), *passed)
"""


@dataclass(frozen=True)
class Attack:
    """One program.

    Attributes:
        aim (`str`): what it wants.
        program (`str`): its text.
        ends (`tuple`): how it may end: names of errors that it may raise, "" for none, or outcomes.
    """

    aim: str
    program: str
    ends: tuple[str | Outcome, ...] = ("PermissionError",)


PROCESSES = [
    Attack("a fork bomb", "import os\nwhile True:\n    os.fork()"),
    Attack(
        "a fork bomb that goes on",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        (Outcome.TIMEOUT,),
    ),
    Attack(
        "a process that outlives the program",
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(60)\n"
        "    os._exit(0)",
    ),
    Attack("a process by posix_spawn", "import os\nos.posix_spawn('/bin/sleep', ['sleep', '60'], {})"),
    Attack("a process by subprocess", "import subprocess\nsubprocess.Popen(['/bin/sleep', '60'])"),
    Attack(
        "a process by multiprocessing", "import multiprocessing, time\nmultiprocessing.Process(target=print).start()"
    ),
    Attack("a shell", "import os\nif os.system(f'touch {OUTSIDE}/hf-rlae-escaped') == 0:\n    tell('ESCAPED')", ("",)),
    Attack(
        "to become another program", "import os\nos.execv('/bin/sh', ['sh', '-c', f'touch {OUTSIDE}/hf-rlae-escaped'])"
    ),
    Attack(
        "processes by raw system calls",
        "for number, arguments in ((56, (17,)), (57, ()), (58, ()), (435, (0, 0)), (59, (0, 0, 0)), (322, (0, "
        "0, 0, 0, 0))):\n"
        "    if syscall(number, *arguments) >= 0:\n        tell('ESCAPED')",
        ("",),
    ),
    Attack(
        "a thread", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", ("RuntimeError",)
    ),
    Attack(
        "a storm of threads",
        "import _thread, time\nwhile True:\n    try:\n        _thread.start_new_thread(time.sleep, (60,))\n"
        "        tell('ESCAPED')\n    except RuntimeError:\n        pass",
        (Outcome.TIMEOUT,),
    ),
]

RESOURCES = [
    Attack("an endless loop", "while True:\n    pass", (Outcome.TIMEOUT,)),
    Attack(
        "an endless loop that ignores signals and has timers of its own",
        "import signal\nfor each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(each, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)\n"
        "while True:\n    try:\n        pass\n    except BaseException:\n        pass",
        (Outcome.TIMEOUT,),
    ),
    Attack("a loop inside C", "import re\nre.match('(a*)*$', 'a' * 60 + 'b')", (Outcome.TIMEOUT,)),
    Attack("a large power", "9 ** 9 ** 9", (Outcome.TIMEOUT, "MemoryError")),
    Attack("to stop itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"),
    Attack(
        "all the memory", "held = []\nwhile True:\n    held.append(bytearray(2**24))", ("MemoryError", Outcome.TIMEOUT)
    ),
    Attack("much memory at once", "held = [0] * 2**40", ("MemoryError",)),
    Attack(
        "memory again and again",
        "held = []\nwhile True:\n    try:\n        held.append(bytearray(2**24))\n    except MemoryError:\n"
        "        pass",
        (Outcome.TIMEOUT,),
    ),
    Attack(
        "shared memory without a name", "import mmap\nheld = [mmap.mmap(-1, 2**28) for _ in range(8)]", ("OSError",)
    ),
    Attack("a file in memory", "import os\nos.memfd_create('x')"),
    Attack("deep recursion", "def f():\n    return f()\nf()", ("RecursionError",)),
    Attack(
        "deeper recursion",
        "import sys\nsys.setrecursionlimit(2**30)\ndef f():\n    return f()\nf()",
        ("MemoryError", Outcome.TIMEOUT, Outcome.MEMORY, Outcome.EXITED),
    ),
    Attack(
        "recursion inside C",
        "import sys\nsys.setrecursionlimit(2**30)\nx = []\nfor _ in range(10**6):\n    x = [x]\nrepr(x)",
        ("MemoryError", Outcome.TIMEOUT, Outcome.MEMORY, Outcome.EXITED),
    ),
    Attack("to flood its output", "while True:\n    print('x' * 1000)", (Outcome.OUTPUT,)),
    Attack(
        "to flood its output whatever the kernel says",
        "import os, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nwhile True:\n    try:\n"
        "        os.write(2, b'x' * 1000)\n    except OSError:\n        pass",
        (Outcome.TIMEOUT,),
    ),
    Attack("a large file", "with open('x', 'wb') as file:\n    file.write(bytes(2**20))", (Outcome.OUTPUT,)),
    Attack(
        "a large hole",
        "import os\nwith open('x', 'wb') as file:\n    os.truncate(file.fileno(), 2**40)",
        (Outcome.OUTPUT,),
    ),
    Attack(
        "many files",
        "n = 0\nwhile True:\n    n += 1\n    with open(str(n), 'w') as file:\n        file.write('x')",
        (Outcome.OUTPUT, Outcome.TIMEOUT),
    ),
    Attack(
        "deep folders",
        "import os\nwhile True:\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)",
        (Outcome.OUTPUT, Outcome.TIMEOUT),
    ),
    Attack("folders that nobody may list", "import os\nos.mkdir('a')\nos.mkdir('a/b')\nos.mkdir('c', 0)", ("",)),
    Attack(
        "more than its limits", "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", ("ValueError",)
    ),
    Attack("other limits for others", "import resource\nresource.prlimit(VICTIM, resource.RLIMIT_CPU, (1, 1))"),
    Attack("another priority for others", "import os\nos.setpriority(os.PRIO_PROCESS, VICTIM, 19)"),
]

FILES = [
    Attack("to read a file", "tell(open(SECRET_FILE).read())", ("PermissionError", "FileNotFoundError")),
    Attack(
        "to read a file by a relative path",
        "import os\ntell(open('../' * 20 + SECRET_FILE).read())",
        ("PermissionError", "FileNotFoundError"),
    ),
    Attack(
        "to read a file by a symbolic link", "import os\nos.symlink(SECRET_FILE, 'link')\ntell(open('link').read())"
    ),
    Attack("to read a file by a hard link", "import os\nos.link(SECRET_FILE, 'link')\ntell(open('link').read())"),
    Attack(
        "to move a file here",
        "import os\nos.rename(SECRET_FILE, 'moved')\ntell(open('moved').read())",
        ("PermissionError", "FileNotFoundError", "OSError"),
    ),
    Attack(
        "to map a file",
        "import mmap, os\ntell(mmap.mmap(os.open(SECRET_FILE, os.O_RDONLY), 0, prot=mmap.PROT_READ)[:80])",
        ("PermissionError", "FileNotFoundError"),
    ),
    Attack("to list folders", "import os\ntell(os.listdir('/'))"),
    Attack(
        "to write elsewhere",
        "import os\nfound = []\nfor folder in (OUTSIDE, '/tmp', '/var/tmp', '/dev/shm', '..', '/root', '/'):\n"
        "    try:\n"
        "        open(f'{folder}/hf-rlae-escaped', 'w').close()\n        found.append(folder)\n    except OSError:\n"
        "        pass\nif found:\n    tell('ESCAPED')",
        ("",),
    ),
    Attack(
        "to make a folder elsewhere",
        "import os\nos.mkdir(f'{OUTSIDE}/hf-rlae-escaped')",
        ("PermissionError", "FileNotFoundError"),
    ),
    Attack("to append to a file", "open(SECRET_FILE, 'a').write('x')", ("PermissionError", "FileNotFoundError")),
    Attack("to cut a file", "import os\nos.truncate(SECRET_FILE, 0)", ("PermissionError", "FileNotFoundError")),
    Attack("to delete a file", "import os\nos.unlink(SECRET_FILE)", ("PermissionError", "FileNotFoundError")),
    Attack("to change the rights of a file", "import os\nos.chmod(SECRET_FILE, 0o777)"),
    Attack("to change the owner of a file", "import os\nos.chown(SECRET_FILE, 1, 1)"),
    Attack("to change the times of a file", "import os\nos.utime(SECRET_FILE, (1, 1))"),
    Attack("to change the attributes of a file", "import os\nos.setxattr(SECRET_FILE, 'user.x', b'x')"),
    Attack("to lock a file", "import fcntl, os\nfcntl.flock(os.open('own', os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)"),
    Attack(
        "to delete its own folder",
        "import os, shutil\nshutil.rmtree(os.getcwd())",
        ("PermissionError", "FileNotFoundError"),
    ),
    Attack(
        "to move its own folder",
        "import os\nos.rename(os.getcwd(), os.getcwd() + '-moved')",
        ("PermissionError", "OSError"),
    ),
    Attack("to close its own folder", "import os\nos.chmod('.', 0)"),
    Attack("a pipe with a name", "import os\nos.mkfifo('pipe')"),
    Attack("a device", "import os, stat\nos.mknod('null', 0o666 | stat.S_IFCHR, os.makedev(1, 3))"),
    Attack("another root", "import os\nos.chroot('.')"),
    Attack("a mount", "if syscall(165, 0, 0, 0, 0, 0) >= 0:\n    tell('ESCAPED')", ("",)),
    Attack(
        "to watch folders",
        "if syscall(253) >= 0 or syscall(294, 0) >= 0 or syscall(300, 0, 0) >= 0:\n    tell('ESCAPED')",
        ("",),
    ),
]

SECRETS = [
    Attack("the environment", "import os\nif os.environ or os.environb:\n    tell(dict(os.environ))", ("",)),
    Attack(
        "the environment in its memory",
        "import ctypes\nlibc = ctypes.CDLL(None)\nenviron = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\n"
        "if environ and environ[0]:\n    tell(environ[0])",
        ("",),
    ),
    Attack(
        "what /proc tells",
        "found = []\nfor pid in ('self', CALLER, VICTIM, 1):\n"
        "    for name in ('environ', 'cmdline', 'maps', 'mem', 'status', 'fd/0'):\n"
        "        try:\n            with open(f'/proc/{pid}/{name}', 'rb') as file:\n"
        "                found.append(file.read(1))\n"
        "        except OSError:\n            pass\nif found:\n    tell('ESCAPED')",
        ("",),
    ),
    Attack(
        "which processes there are", "import os\ntell(os.listdir('/proc'))", ("PermissionError", "FileNotFoundError")
    ),
    Attack(
        "which descriptors it has",
        "import os\nfound = []\nfor descriptor in range(64):\n    try:\n        os.fstat(descriptor)\n"
        "        found.append(descriptor)\n"
        "    except OSError:\n        pass\nif found != [0, 1, 2, 3]:\n    tell(found)",
        ("",),
    ),
    Attack(
        "what the caller's objects hold",
        "import gc\nfor each in gc.get_objects():\n    if isinstance(each, dict):\n"
        "        for value in list(each.values()):\n"
        "            if isinstance(value, str) and value.startswith('hf-rlae-' + 'secret-'):\n"
        "                tell(value)",
        ("",),
    ),
    Attack(
        "the memory of others",
        "for number in (310, 311):\n    if syscall(number, CALLER, 0, 0, 0, 0, 0) >= 0:\n        tell('ESCAPED')",
        ("",),
    ),
    Attack(
        "to trace others",
        "if syscall(101, 16, VICTIM, 0, 0) >= 0 or syscall(101, 0, 0, 0, 0) >= 0:\n    tell('ESCAPED')",
        ("",),
    ),
    Attack("whether a process exists, by its processors", "import os\ntell(os.sched_getaffinity(VICTIM))"),
    Attack("whether a process exists, by its group", "import os\ntell(os.getpgid(VICTIM))"),
    Attack("whether a process exists, by its clock", "import time\ntell(time.clock_gettime(~VICTIM << 3 | 2))"),
    Attack("whether a process exists, by a descriptor", "import os\ntell(os.pidfd_open(VICTIM))"),
]

NETWORK = [
    Attack(
        "a connection", "import socket\nsocket.create_connection(('127.0.0.1', PORT))", ("PermissionError", "gaierror")
    ),
    Attack("a packet", "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))"),
    Attack("a connection by a path", "import socket\nsocket.socket(socket.AF_UNIX).connect(SOCKET)"),
    Attack(
        "a connection by an abstract name", "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0' + ABSTRACT)"
    ),
    Attack(
        "a packet from a pair of sockets",
        "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '\\0' + ABSTRACT)",
    ),
    Attack(
        "a packet from its channel",
        "import os, socket\nchannel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, 3)\ntry:\n"
        "    channel.sendto(b'x', '\\0' + ABSTRACT)\nfinally:\n    channel.detach()",
        ("OSError",),
    ),
    Attack(
        "a descriptor for the caller",
        "import socket, array\nchannel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, 3)\n"
        "try:\n    socket.send_fds(channel, [b'x'], [0])\nfinally:\n    channel.detach()",
    ),
    Attack("to listen", "import socket\nsocket.create_server(('127.0.0.1', 0))"),
    Attack("to talk to the kernel", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)"),
    Attack("to resolve a name", "import socket\ntell(socket.gethostbyname('localhost'))", ("gaierror",)),
    Attack(
        "sockets by io_uring",
        "import ctypes\nif syscall(425, 8, ctypes.create_string_buffer(256)) >= 0:\n    tell('ESCAPED')",
        ("",),
    ),
]

SIGNALS = [
    Attack("to signal the caller", "import os, signal\nos.kill(CALLER, signal.SIGUSR1)"),
    Attack("to kill another process", "import os, signal\nos.kill(VICTIM, signal.SIGKILL)"),
    Attack("to kill all processes", "import os, signal\nos.kill(-1, signal.SIGKILL)"),
    Attack("to kill its own group", "import os, signal\nos.killpg(0, signal.SIGKILL)"),
    Attack("to kill its zygote", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"),
    Attack("to kill itself", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    Attack(
        "signals by raw system calls",
        "for number, arguments in ((62, (VICTIM, 9)), (200, (VICTIM, 9)), (234, (VICTIM, VICTIM, 9)), (129, "
        "(VICTIM, 9, 0)), (424, (3, 9, 0, 0))):\n"
        "    if syscall(number, *arguments) >= 0:\n        tell('ESCAPED')",
        ("",),
    ),
    Attack("signals by the owner of a descriptor", "import fcntl\nfcntl.fcntl(3, fcntl.F_SETOWN, VICTIM)"),
    Attack(
        "signals by the owner of a terminal", "import fcntl, struct\nfcntl.ioctl(3, 0x8901, struct.pack('i', VICTIM))"
    ),
    Attack("to leave its session", "import os\nos.setsid()"),
]

CHANNEL = [
    Attack("to leave early", "import os\nos._exit(0)", (Outcome.EXITED,)),
    Attack("to look like a worker without memory", "import os\nos._exit(86)", (Outcome.MEMORY,)),
    Attack("to exit", "import sys\nsys.exit(0)", ("SystemExit",)),
    Attack("to crash", "import ctypes\nctypes.string_at(0)", (Outcome.EXITED,)),
    Attack("to abort", "import os\nos.abort()", (Outcome.EXITED,)),
    Attack("to close all descriptors", "import os\nos.closerange(0, 64)", (Outcome.EXITED, Outcome.BROKEN)),
    Attack("to write anything to its channel", "import os\nos.write(3, b'anything\\n')", (Outcome.BROKEN,)),
    Attack("to write something else than an object", "import os\nos.write(3, b'[1]\\n')", (Outcome.BROKEN,)),
    Attack("a line without an end", "import os\nwhile True:\n    os.write(3, b'x' * 2**16)", (Outcome.BROKEN,)),
    Attack("a deep line", "import os\nos.write(3, b'[' * 10**5 + b'\\n')", (Outcome.BROKEN,)),
    Attack("a large number", "import os\nos.write(3, b'{\"loaded\":' + b'9' * 10**5 + b'}\\n')", (Outcome.BROKEN,)),
    Attack("bytes that are no text", "import os\nos.write(3, b'{\"\\xff\\xfe\": 1}\\n')", (Outcome.BROKEN,)),
    Attack(
        "that the caller unpickles",
        "import os, pickle\nclass Evil:\n    def __reduce__(self):\n"
        "        return os.system, (f'touch {OUTSIDE}/hf-rlae-escaped',)\n"
        "os.write(3, pickle.dumps(Evil()) + b'\\n')",
        (Outcome.BROKEN,),
    ),
    Attack(
        "to unpickle here",
        "import os, pickle\nclass Evil:\n    def __reduce__(self):\n"
        "        return os.system, (f'touch {OUTSIDE}/hf-rlae-escaped',)\n"
        "if pickle.loads(pickle.dumps(Evil())) == 0:\n    tell('ESCAPED')",
        ("",),
    ),
    Attack("to stay after it has left", "import os\nos._exit = lambda code: None\nraise SystemExit", ("SystemExit",)),
    Attack(
        "to speak for its zygote",
        "import sys\nframe = sys._getframe()\nwhile frame:\n    for value in list(frame.f_locals.values()):\n"
        "        for each in (value, *vars(value).values()) if hasattr(value, '__dict__') else (value,):\n"
        "            if type(each).__name__ == 'socket':\n                try:\n                    each.send(b'x')\n"
        "                except OSError:\n                    pass\n    frame = frame.f_back",
        ("", Outcome.BROKEN),
    ),
]

KERNEL = [
    Attack("system calls of another kind", "syscall(0x40000000 | 39)\ntell('ESCAPED')", (Outcome.EXITED,)),
    Attack(
        "system calls of 32 bits",
        "import ctypes, mmap\ncode = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "code.write(bytes.fromhex('b814000000cd80c3'))\naddress = ctypes.addressof(ctypes.c_char.from_buffer(code))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(address)()\ntell('ESCAPED')",
        (Outcome.EXITED,),
    ),
    Attack(
        "what others share: keys, queues, memory, clocks, names",
        "refused = {\n"
        "    'shmget': (29, KEY, 4096, 0o1666), 'semget': (64, KEY, 1, 0o1666), 'msgget': (68, KEY, 0o1666),\n"
        "    'mq_open': (240, b'/hf-rlae-escaped', 0o102, 0o666, 0), 'add_key': (248, b'user', b'x', b'x', 1, -3),\n"
        "    'keyctl': (250, 0, -3, 1), 'settimeofday': (164, 0, 0), 'sethostname': (170, b'x', 1), 'acct': (163, 0),\n"
        "    'swapon': (167, b'x', 0), 'reboot': (169, 0, 0, 0, 0), 'init_module': (175, 0, 0, b''), "
        "'unshare': (272, 0x10000000),\n"
        "    'setns': (308, 3, 0), 'perf_event_open': (298, 0, 0, -1, -1, 0), 'bpf': (321, 0, 0, 0), "
        "'userfaultfd': (323, 0),\n"
        "    'personality': (135, 0), 'seccomp': (317, 0, 0, 0), 'landlock': (444, 0, 0, 1), "
        "'modify_ldt': (154, 0, 0, 0),\n"
        "    'prctl': (157, 1, 0, 0, 0, 0), 'dumpable': (157, 4, 1, 0, 0, 0), 'setuid': (105, 0), "
        "'capset': (126, 0, 0),\n"
        "    'iopl': (172, 3), 'sysinfo': (99, 0), 'syslog': (103, 3, 0, 0), 'kcmp': (312, VICTIM, CALLER, 0, 0, 0),\n"
        "    'open_by_handle_at': (304, 3, 0, 0), 'memfd_secret': (447, 0), 'process_madvise': (440, 3, 0, 0, "
        "0, 0),\n}\n"
        "worked = [name for name, arguments in refused.items() if syscall(*arguments) >= 0]\nif worked:\n"
        "    tell(worked)",
        ("",),
    ),
]

WAITING = [
    Attack("to sleep", "import time\ntime.sleep(1000)", (Outcome.TIMEOUT,)),
    Attack(
        "to close its channel and stay",
        "import os, time\nos.close(3)\ntime.sleep(1000)",
        (Outcome.BROKEN, Outcome.TIMEOUT),
    ),
]
"""These do nothing for a long time, and need a sandbox with a short one."""

ATTACKS = [*PROCESSES, *RESOURCES, *FILES, *SECRETS, *NETWORK, *SIGNALS, *CHANNEL, *KERNEL]
