"""What works on whole models: conversion, max norm, Monte Carlo dropout."""
