from kdsearch.data.batches import ArrayData as ArrayData
from kdsearch.data.batches import digits as digits
from kdsearch.data.batches import in_memory as in_memory
from kdsearch.data.batches import shuffled as shuffled
from kdsearch.data.folders import image_folder as image_folder
from kdsearch.data.folders import load_arrays as load_arrays
from kdsearch.data.images import load_images as load_images
