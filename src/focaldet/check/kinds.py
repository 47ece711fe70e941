"""The kinds of problems that a check knows: what each means, and what to do about it."""

from collections.abc import Mapping

MEANINGS: Mapping[str, str] = {
    # of the files
    "image unusable": "The image cannot be read. Training stops there: repair or remove it.",
    "record unreadable": "A record or file of annotations that cannot be understood. Training stops there.",
    "split unreadable": "The annotations of a whole split cannot be read.",
    "image missing": "An image that the annotations name is not there. --data.missing skip leaves such images out.",
    "image unused": "No list or record names this image: it is not trained on.",
    "image in another folder": "No list or record names an image of this folder.",
    "image of another kind": "An image of a kind that is not read.",
    "hidden file": "Its name, or that of a folder above it, begins with a dot: it is not used.",
    "link outside": "A link that leads out of the data's folder; --data.follow-links takes it.",
    "folder unreadable": "A folder without permission, or a link to nothing.",
    "label without image": "Annotations whose image is not there: they are not used.",
    "annotation file unused": "Another file of annotations was taken instead of this one; name it to use it.",
    "file unreadable": "A file of annotations that cannot be understood.",
    "loose value": "A value that is not as the format has it and can be understood; --data.strict refuses it.",
    "boxes are fractions": "The boxes lie in 0…1 and are taken as fractions of the image.",
    "box ignored by flag": "Crowds, difficult objects and the like are neither object nor background.",
    "size differs": "The annotations state another size than the image has: were its boxes drawn on another version?",
    "image listed twice": "The same file is in the annotations twice, and is trained on twice.",
    "image turned": "The camera noted that the image is to be turned. It is, everywhere; boxes must be those of the "
    "turned image. If they lie wrong, they were drawn on the image as it is stored.",
    "name in two cases": "Two names that differ only in upper and lower case: on Windows and macOS they are one file.",
    # of the boxes
    "box impossible": "Not pixel coordinates, or NaN. Training stops there.",
    "box empty": "Nothing of the box lies inside its image, or it has no area. It is dropped. Where it is most boxes, "
    "the columns may have another order than was thought.",
    "box clipped": "The box extends beyond its image and is cut.",
    "box outside": "The box extends beyond its image, which the settings refuse or drop.",
    "box rounded": "The box extends beyond its image by a rounding error and is cut.",
    "box twice": "The same box with the same class again.",
    "box tiny": "At the size of the network the box is smaller than a few pixels: little is left to learn from. A "
    "larger --size, or tiles of the images, make it larger.",
    "box extreme": "The box is very long and thin: hardly any anchor has such a shape.",
    "too many boxes": "The image has more boxes than the detector may answer with, or than COCO's evaluation counts: "
    "raise --architecture.detect.max-detections, and --max-detections of eval.",
    "labels twice": "Two different images have exactly the same boxes: often a label file that was copied.",
    "no boxes": "No image of the split has a box.",
    # of the classes and splits
    "class without boxes": "The class is named, and has no box.",
    "class in two cases": "Two classes whose names differ only in upper and lower case or spaces: probably one.",
    "class differs in case": "A class of this split that is written otherwise in training, and is taken for that one.",
    "class not trained": "A class that training does not have: its boxes are left out here.",
    "classes differ": "The split has classes that the training split lacks.",
    "class skew": "A class is much more frequent in one split than in the other: its AP says little about training.",
    "image twice": "Two files of one split with equal content.",
    "image in two splits": "The same file is trained on and evaluated on: AP is too high.",
    "near duplicate": "Two images of one split that look the same: frames of a video, or one image saved twice.",
    "near duplicate in two splits": "An image that looks like one of another split: AP is too high. Split by scene, "
    "video or day instead of by image.",
}
