"""Recordings whose headers don't say how long they are."""

import soundfile


def write_streamed_flac(path, wave, rate):
    """FLAC as an encoder writes it that can't go back to its header at the end."""
    soundfile.write(path, wave, rate, format="FLAC")
    content = bytearray(path.read_bytes())
    assert content[:4] == b"fLaC"
    # The last 36 bits before the checksum are the number of samples.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)


def write_plain_mp3(path, wave, rate):
    """MP3 without the frame that says how many there are, and with a large ID3v2 tag,
    from which libsndfile takes it for longer than it is."""
    soundfile.write(path, wave, rate, format="MP3")
    content = path.read_bytes()
    second = content.index(content[:2], 4)
    assert b"Info" in content[:second] or b"Xing" in content[:second]
    tag = b"ID3\x04\0\0\0\x01\x1c\x20" + bytes(20_000)  # seven bits a byte: 20 000
    path.write_bytes(tag + content[second:])
