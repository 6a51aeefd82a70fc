"""Searching an output and looking at it.

An open FeatureFile comes in; results, pages (HTML) and pictures go out. similarity.py computes cosines of embeddings,
block by block, and where a video changes. For a search, query.py turns a text into the vectors to search for,
search.py finds the clips that are nearest to them, approximate.py first says which clips are worth comparing in a very
large file, near_copies.py finds videos that agree, and page.py shows what was found. For a report, report.py chooses
what to show, section.py describes each video, clip_map.py draws the map of the clips, and report.py renders the page.
thumbnails.py has a decoder process take the pictures of pages. plot.py draws the self-similarity of one video.
"""
