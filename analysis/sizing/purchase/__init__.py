"""Says what to buy: which cards, and how many, hold a stated number of users, and what they cost.

It knows no prices but those that are stated, and nothing of delivery, racks or discounts.
"""
