"""The data doctor: what is in a data set, what is wrong with it, and how anchors fit its boxes."""
