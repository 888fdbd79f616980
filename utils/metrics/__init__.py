"""How good detections are: COCO's twelve numbers, curves over confidence, the confusion matrix."""
