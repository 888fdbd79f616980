"""Is an artefact the network it came from?"""
