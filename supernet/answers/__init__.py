"""What a classifier answers: on labelled images, on photographs without labels, and on images that are disturbed."""
