"""Quality of detections: COCO's twelve metrics, curves over confidence, the confusion matrix."""
