"""Generates the Python stubs of the contract.

Usage: python proto/generate.py FOLDER, in an environment with proto/requirements.txt. Messages go to
FOLDER/boxloss/v1/*_pb2.py, the service to *_pb2_grpc.py, both with .pyi.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent


def main(folder: str) -> None:
    """Runs the compiler; exits with its status."""
    messages = [str(path) for path in sorted(ROOT.glob("boxloss/v1/*.proto"))]
    services = [path for path in messages if path.endswith("_service.proto")]
    # protoc looks for the plugins of mypy-protobuf beside this interpreter.
    binaries = Path(sys.executable).parent
    plugins = [f"--plugin={name}={binaries / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    includes = [f"--proto_path={ROOT}", f"--proto_path={files('grpc_tools') / '_proto'}"]
    for outputs, sources in (
        ([f"--python_out={folder}", f"--mypy_out=quiet:{folder}"], messages),
        ([f"--grpc_python_out={folder}", f"--mypy_grpc_out=quiet:{folder}"], services),
    ):
        if status := protoc.main(["protoc", *includes, *plugins, *outputs, *sources]):
            sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1])
