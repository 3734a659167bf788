"""Opens an ONNX file for running, with one clear line for whatever is wrong with it."""

from pathlib import Path
from typing import Any

from fedtalk_ray.media.dlib_models import MissingModelError


def open_onnx(path: str | Path) -> Any:
    """An onnxruntime `InferenceSession` on one CPU thread: others share the machine.

    Raises `MissingModelError` when there is no such file, it is no network, or onnxruntime is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingModelError(f"{path} does not exist; name an ONNX file")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingModelError(f"reading {path} needs onnxruntime ({error}): pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about the file's maker
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        reason = str(error).splitlines()[0]
        raise MissingModelError(f"{path} cannot be read as an ONNX network ({reason})") from error
