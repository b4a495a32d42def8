import ctypes, errno, json, mmap, os, subprocess, sys


def contents(descriptor):
    data = b""
    while piece := os.read(descriptor, 65536):
        data += piece
    return data.decode("latin-1")


def opened(path, flags=os.O_RDONLY, dir_fd=None):
    descriptor = os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return contents(descriptor)
    finally:
        os.close(descriptor)


def about(found):
    # The size of a directory says nothing.
    return [oct(found.st_mode), found.st_size]


def scanned(path):
    with os.scandir(path) as entries:
        return sorted([e.name, e.is_dir(follow_symlinks=False), e.is_symlink(), about(e.stat(follow_symlinks=False))] for e in entries)


def below(path, name):
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        return opened(name, dir_fd=directory)
    finally:
        os.close(directory)


def through_a_path_descriptor(path):
    descriptor = os.open(path, os.O_PATH)
    try:
        return [about(os.fstat(descriptor)), opened(f"/proc/self/fd/{descriptor}")]
    finally:
        os.close(descriptor)


def mapped(path):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        return pages[:].decode("latin-1")


def linked(path):
    try:
        os.link(path, "/tmp/linked")
        return "linked"
    finally:
        if os.path.exists("/tmp/linked"):
            os.unlink("/tmp/linked")


def moved_into(path, name):
    directory = os.getcwd()
    os.chdir(path)
    try:
        return [os.listdir(".") and "something", opened(name)]
    finally:
        os.chdir(directory)


def by_handle(path):
    class Handle(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]

    libc = ctypes.CDLL(None, use_errno=True)
    handle, mount = Handle(128, 0), ctypes.c_int()
    if libc.name_to_handle_at(-100, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    directory = os.open("tree", os.O_RDONLY)
    try:
        descriptor = libc.open_by_handle_at(directory, ctypes.byref(handle), os.O_RDONLY)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        try:
            return contents(descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(directory)


def ran(path):
    done = subprocess.run([path], capture_output=True)
    return [done.returncode, done.stdout.decode("latin-1")]


def walked(path):
    return [[root, sorted(directories), sorted(files)] for root, directories, files in sorted(os.walk(path))]


LOOKS = {
    "read": lambda path, name: opened(path),
    "stat": lambda path, name: about(os.stat(path)),
    "lstat": lambda path, name: about(os.lstat(path)),
    "access": lambda path, name: [os.access(path, mode) for mode in (os.F_OK, os.R_OK, os.X_OK)],
    "list": lambda path, name: sorted(os.listdir(path)),
    "scan": lambda path, name: scanned(path),
    "readlink": lambda path, name: os.readlink(path),
    "run": lambda path, name: ran(path),
    "openat": below,
    "opath": lambda path, name: through_a_path_descriptor(path),
    "mmap": lambda path, name: mapped(path),
    "link": lambda path, name: linked(path),
    "walk": lambda path, name: walked(path),
    "chdir": moved_into,
    "handle": lambda path, name: by_handle(path),
    "statx": lambda path, name: about(os.stat(name, dir_fd=os.open(path, os.O_PATH), follow_symlinks=False)),
    "realpath": lambda path, name: os.path.realpath(path, strict=True),
    "twice": lambda path, name: [os.path.exists(path), os.path.exists(path), os.path.isdir(f"{path}/{name}")],
    "rename": lambda path, name: os.rename(path, f"{path}.new"),
}

with open(sys.argv[2], "w") as seen:
    for way, path, name in json.loads(sys.argv[1]):
        try:
            found = LOOKS[way](path, name)
        except ValueError as error:
            found = str(error)
        except OSError as error:
            found = errno.errorcode.get(error.errno, "?")
        print(way, path, name, json.dumps(found), file=seen)
