"""What a wheel requires, without extras and without what is installed beforehand or not needed on a CPU.

python scripts/vllm/requirements.py WHEEL > requirements.txt
"""

import re
import sys
import zipfile

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "six", "depyf"}


def main() -> None:
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        name = next(each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
        lines = wheel.read(name).decode().splitlines()
    for line in lines:
        if not line.startswith("Requires-Dist:") or "extra ==" in line:
            continue
        required = line.partition(":")[2].strip()
        if re.split(r"[\s\[<>=!~;(]", required)[0].lower() not in LEFT_OUT:
            print(required)


if __name__ == "__main__":
    main()
