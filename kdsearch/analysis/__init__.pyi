from kdsearch.analysis.diff import policy_diff as policy_diff
from kdsearch.analysis.frames import policy_frame as policy_frame
from kdsearch.analysis.sheet import policy_sheet as policy_sheet
