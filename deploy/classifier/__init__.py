"""Classifiers: the same formats for networks that give logits."""
