# Single-task learning, the baseline of Delta p: tools/train.py trains each task alone and writes one results file.
_base_ = './ew.py'
single_task = True
