"""`gptlit look`: a model's attention, predictions, layers and neighbours on one HTML page.

Values come from gptlit.insight; here they become the page's data, its styles and its script.
"""
