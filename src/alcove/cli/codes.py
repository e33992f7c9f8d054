"""The nitro-cli that ours stands for, and its error codes in Alcove's words (cli.md §5.2).

An ellipsis stands for what the report itself names.

Core: a table.
"""

from __future__ import annotations

from typing import Final

NITRO_CLI_VERSION: Final = "1.5.0"
ERROR_CODES: Final[dict[str, tuple[str, str]]] = {
    "E00": (
        "UnspecifiedError",
        "Something failed and no specific code fits. Please report this with the error log.",
    ),
    "E01": (
        "MissingArgument",
        "The argument `…` is missing. Give it on the command line or in the config file.",
    ),
    "E02": (
        "ConflictingArgument",
        "`…` and `…` exclude each other. Keep one of them.",
    ),
    "E03": (
        "InvalidArgument",
        "`…` is not a valid value for `…`: ….",
    ),
    "E04": (
        "SocketPairCreationFailure",
        "Could not open a channel to the enclave process.",
    ),
    "E05": (
        "ProcessSpawnFailure",
        "Could not start the enclave process.",
    ),
    "E06": (
        "DaemonizeProcessFailure",
        "The enclave process could not detach from the terminal.",
    ),
    "E07": (
        "ReadFromDiskFailure",
        "Cannot read the runtime directory `…`. Check that it exists and who owns it.",
    ),
    "E08": (
        "UnusableConnectionError",
        "The connection to the enclave process is no longer usable.",
    ),
    "E09": (
        "SocketCloseError",
        "A connection could not be closed cleanly.",
    ),
    "E10": (
        "SocketConnectTimeoutError",
        "Could not set the connect timeout for the console.",
    ),
    "E11": (
        "SocketError",
        "No enclave process answers at this address. `describe-enclaves` lists what is running.",
    ),
    "E12": (
        "EpollError",
        "Waiting for events failed.",
    ),
    "E13": (
        "InotifyError",
        "Could not watch the runtime socket.",
    ),
    "E14": (
        "InvalidCommand",
        "The enclave process got a command it does not know. The two programs may have different versions.",
    ),
    "E15": (
        "LockAcquireFailure",
        "An internal lock could not be taken.",
    ),
    "E16": (
        "ThreadJoinFailure",
        "An internal worker ended unexpectedly.",
    ),
    "E17": (
        "SerdeError",
        "`…` is not in the expected format.",
    ),
    "E18": (
        "FilePermissionsError",
        "Cannot change the permissions of `…`.",
    ),
    "E19": (
        "FileOperationFailure",
        "Cannot … `…`: ….",
    ),
    "E20": (
        "InvalidCpuConfiguration",
        "CPU(s) … appear more than once in `…`.",
    ),
    "E21": (
        "NoSuchCpuAvailableInPool",
        "CPU … is not reserved for enclaves. Add it to `cpu_pool` in allocator.yaml.",
    ),
    "E22": (
        "InsufficientCpus",
        "… CPUs were asked for, the pool has fewer. Raise `cpu_count` in allocator.yaml.",
    ),
    "E23": (
        "MalformedCpuId",
        "The CPU pool contains something that is not a CPU number.",
    ),
    "E24": (
        "CpuError",
        "The CPU pool contains a range that cannot be read.",
    ),
    "E25": (
        "NoSuchHugepageFlag",
        "Unknown huge-page size.",
    ),
    "E26": (
        "InsufficientMemoryRequested",
        "… MiB is too little for this image; it needs at least … MiB. / Memory must be greater than 0.",
    ),
    "E27": (
        "InsufficientMemoryAvailable",
        "… MiB were asked for but not that much is reserved. Raise `memory_mib` in allocator.yaml.",
    ),
    "E28": (
        "InvalidEnclaveFd",
        "The virtual machine could not be created.",
    ),
    "E29": (
        "IoctlFailure",
        "The hypervisor refused a request: ….",
    ),
    "E30": (
        "IoctlImageLoadInfoFailure",
        "Could not find out where to load the image.",
    ),
    "E31": (
        "IoctlSetMemoryRegionFailure",
        "Memory could not be handed to the enclave.",
    ),
    "E32": (
        "IoctlAddVcpuFailure",
        "A CPU could not be handed to the enclave.",
    ),
    "E33": (
        "IoctlEnclaveStartFailure",
        "The enclave could not be started.",
    ),
    "E34": (
        "MemoryOverflow",
        "The image does not fit into the enclave's memory.",
    ),
    "E35": (
        "EifParsingError",
        "This is not a usable enclave image: ….",
    ),
    "E36": (
        "EnclaveBootFailure",
        "The enclave did not report that it is up within … s. Start it with `--debug-mode` and look at the console.",
    ),
    "E37": (
        "EnclaveEventWaitError",
        "Waiting for the enclave failed.",
    ),
    "E38": (
        "EnclaveProcessCommandNotExecuted",
        "… enclave process(es) could not carry out the command.",
    ),
    "E39": (
        "EnclaveProcessConnectionFailure",
        "… enclave process(es) did not answer.",
    ),
    "E40": (
        "SocketPathNotFound",
        "This enclave id is not valid.",
    ),
    "E41": (
        "EnclaveProcessSendReplyFailure",
        "The answer could not be delivered.",
    ),
    "E42": (
        "EnclaveMmapError",
        "Enclave memory could not be mapped.",
    ),
    "E43": (
        "EnclaveMunmapError",
        "Enclave memory could not be released.",
    ),
    "E44": (
        "EnclaveConsoleConnectionFailure",
        "No console: start the enclave with `--debug-mode` to get one.",
    ),
    "E45": (
        "EnclaveConsoleReadError",
        "Reading the console failed.",
    ),
    "E46": (
        "EnclaveConsoleWriteOutputError",
        "Writing the console output failed.",
    ),
    "E47": (
        "IntegerParsingError",
        "The enclave's CID is out of range.",
    ),
    "E48": (
        "EifBuildingError",
        "The image could not be built: ….",
    ),
    "E49": (
        "DockerImageBuildError",
        "The container image could not be built: ….",
    ),
    "E50": (
        "DockerImagePullError",
        "The container image could not be fetched: ….",
    ),
    "E51": (
        "ArtifactsPathNotSet",
        "Set NITRO_CLI_ARTIFACTS or HOME so that build files have a place.",
    ),
    "E52": (
        "BlobsPathNotSet",
        "The boot files are missing in `…`.",
    ),
    "E53": (
        "ClockSkewError",
        "The clock moved backwards while reading the console.",
    ),
    "E54": (
        "SignalMaskingError",
        "Signals could not be blocked.",
    ),
    "E55": (
        "SignalUnmaskingError",
        "Signals could not be restored.",
    ),
    "E56": (
        "LoggerError",
        "Logging could not be set up.",
    ),
    "E57": (
        "HasherError",
        "`…` could not be measured: ….",
    ),
    "E58": (
        "EnclaveNamingError",
        "No enclave is called `…`. / Several enclaves are called `…`; use the id.",
    ),
    "E59": (
        "EIFSignatureCheckerError",
        "The image's signature was not accepted: ….",
    ),
    "E60": (
        "EIFSigningError",
        "The image could not be signed: …. Nothing was changed.",
    ),
}
