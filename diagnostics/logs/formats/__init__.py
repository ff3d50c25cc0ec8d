"""One file per format of logs. `read.py` lists the folder, so that a new reader is a new file."""
