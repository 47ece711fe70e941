"""Detection in videos, cameras and folders of frames: reading, tracking, writing."""
