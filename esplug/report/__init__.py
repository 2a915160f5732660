"""``esplug report``: one page of figures, samples and settings of one run or several."""
