"""Run folders, and the result files of other load generators, read into columns of numbers.

Does no statistics, and knows neither levels of users nor limits."""
