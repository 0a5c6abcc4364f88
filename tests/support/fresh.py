"""Programs in a process that has imported torch and nothing else: forked from one, since that import takes seconds."""

import atexit
import functools
import json
import subprocess
import sys
import tempfile

# Takes a program, its words and its variables as a line of JSON; answers with its exit status.
SERVER = """
import json, os, sys, traceback
import torch

for line in sys.stdin:
    code, words, variables, out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for stream, file in ((0, os.devnull), (1, out), (2, err)):
                os.dup2(os.open(file, os.O_RDWR), stream)
            os.environ.update(variables)
            sys.argv[1:] = words
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _server():
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(server.communicate)  # it ends with its input
    return server


def run(code, *words, **variables):
    """The program run with these words in sys.argv and these variables of the environment beside its own: what
    subprocess.run returns. SystemExit has a number here."""
    server = _server()
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        print(json.dumps([code, words, variables, out.name, err.name]), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        found = [file.read().decode() for file in (out, err)]
    return subprocess.CompletedProcess(["-c", *words], status, *found)
