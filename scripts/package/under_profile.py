#!/usr/bin/python3
"""Runs a command under a seccomp profile in Docker's format, as a container runtime would.

    usage: under_profile.py [--strict] PROFILE COMMAND [ARGUMENT]...

With --strict a call that the profile does not name ends the process (SIGSYS) instead of getting EPERM, so that nothing
can go on without it. Needs libseccomp's module for Python (Debian: python3-seccomp).
"""

import errno
import json
import os
import platform
import sys

try:
    import seccomp
except ImportError:
    sys.exit("python3-seccomp is not installed")

ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
OPERATORS = {"SCMP_CMP_EQ": seccomp.EQ, "SCMP_CMP_NE": seccomp.NE, "SCMP_CMP_MASKED_EQ": seccomp.MASKED_EQ}


def action(name: str, errno_ret: int) -> int:
    """The action by that name."""
    return {"SCMP_ACT_ALLOW": seccomp.ALLOW, "SCMP_ACT_ERRNO": seccomp.ERRNO(errno_ret)}[name]


def argument(condition: dict) -> seccomp.Arg:
    """A condition on an argument."""
    operator = OPERATORS[condition["op"]]
    if operator == seccomp.MASKED_EQ:
        return seccomp.Arg(condition["index"], operator, condition["value"], condition["valueTwo"])
    return seccomp.Arg(condition["index"], operator, condition["value"])


def build(profile: dict, *, strict: bool) -> seccomp.SyscallFilter:
    """The filter that a runtime would load on this machine."""
    arch = ARCHES[platform.machine()]
    default = action(profile["defaultAction"], profile.get("defaultErrnoRet", errno.EPERM))
    rules = seccomp.SyscallFilter(seccomp.KILL_PROCESS if strict else default)
    for entry in profile["syscalls"]:
        if arch not in entry.get("includes", {}).get("arches", [arch]):
            continue
        what = action(entry["action"], entry.get("errnoRet", errno.EPERM))
        for name in entry["names"]:
            rules.add_rule(what, name, *[argument(condition) for condition in entry.get("args", [])])
    return rules


def main() -> None:
    """Loads the filter, and becomes the command."""
    arguments = sys.argv[1:]
    strict = arguments[:1] == ["--strict"]
    path, *command = arguments[strict:]
    with open(path, encoding="utf-8") as file:
        rules = build(json.load(file), strict=strict)
    rules.load()
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
