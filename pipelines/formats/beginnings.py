"""What the first bytes of a file tell of it, where it is not what its name or the job says. It reads no rows."""

from batchloom.pipelines.formats.contents import COMPRESSIONS

_UTF16 = "it is UTF-16; convert it to UTF-8, such as by iconv -f UTF-16 -t UTF-8"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh91AY&SY": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
}
_FORMATS = {b"PAR1\x15": "Parquet", b"Obj\x01": "Avro", b"%PDF-": "PDF", b"ARROW1\0\0": "an Arrow file"}
LONGEST = 10  # bytes that are looked at; no text begins as these do


def told_by(beginning: bytes) -> str:
    """Return what a file is that begins so, and what to do, as a clause; empty for text and for what is not known."""
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _UTF16
    for mark, name in _COMPRESSED.items():
        if beginning.startswith(mark):
            ending = next((ending for ending, one in COMPRESSIONS.items() if one == name), None)
            cure = f"let its name say so ({ending})" if ending else f"compress it as {', '.join(COMPRESSIONS)}"
            return f"it is compressed by {name}; decompress it, or {cure}"
    for mark, name in _FORMATS.items():
        if beginning.startswith(mark):
            return f"it is {name}" + ("; set input.format: parquet" if name == "Parquet" else ", which is not read")
    return ""
