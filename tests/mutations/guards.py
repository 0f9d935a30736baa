"""The guards: where each stands, what takes it out, and which tests must notice.

``before`` stands once in its file; ``after`` takes its place. A test of the suite holds that every one still fits.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guard:
    """One guard of the package, by what it is there for."""

    name: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]


GUARDS: tuple[Guard, ...] = (
    Guard(
        "a worker's answer has a time limit",
        "latentpg/rollout/supervised.py",
        "self.step_wait(timeout=self.timeout)",
        "self.step_wait(timeout=20.0)",
        ("tests/rollout/test_supervised.py -k named_with_its_seed",),
    ),
    Guard(
        "a worker that cannot be started has one too",
        "latentpg/rollout/supervised.py",
        "threading.Timer(self.timeout, end)",
        "threading.Timer(self.timeout + 15.0, end)",
        ("tests/rollout/test_supervised.py -k started_is_named",),
    ),
    Guard(
        "closing does not wait for a worker that hangs",
        "latentpg/rollout/supervised.py",
        "                worker.kill()\n\n        watch",
        "                pass\n\n        watch",
        ("tests/rollout/test_supervised.py -k does_not_wait",),
    ),
    Guard(
        "seeds are those of each member's own last reset",
        "latentpg/rollout/supervised.py",
        "range(len(self._seeds)) if mask is None else np.flatnonzero(mask).tolist()",
        "range(len(self._seeds))",
        ("tests/rollout/test_supervised.py -k last_reset",),
    ),
    Guard(
        "observations and rewards are finite",
        "latentpg/rollout/edge.py",
        "        if finite.all():\n",
        "        if True:\n",
        ("tests/rollout/test_collector.py",),
    ),
    Guard(
        "a reset of some members leaves the others alone",
        "latentpg/rollout/edge.py",
        "        if not unread and not moved.any():\n",
        "        if True:\n",
        ("tests/rollout",),
    ),
    Guard(
        "rows are what the policy recorded",
        "latentpg/rollout/record.py",
        "    if not change <= tolerance:\n",
        "    if False:\n",
        ("tests/rollout/test_record.py",),
    ),
    Guard(
        "a loss that is not finite moves nothing",
        "latentpg/learners/descent.py",
        "    if not math.isfinite(float(loss.detach())):",
        "    if False:",
        ("tests/learners/test_descent.py",),
    ),
    Guard(
        "nor does such a gradient",
        "latentpg/learners/descent.py",
        "        if not length < math.inf:\n",
        "        if False:\n",
        ("tests/learners/test_descent.py",),
    ),
    Guard(
        "of two losses both are checked before either moves",
        "latentpg/learners/descent.py",
        "    other.check_length(lengths[1], others)\n    one.descend(mine, lengths[0], in_place=True)\n",
        "    one.descend(mine, lengths[0], in_place=True)\n    other.check_length(lengths[1], others)\n",
        ("tests/learners/test_descent.py",),
    ),
    Guard(
        "a run goes on with the options it began with",
        "latentpg/training/folders.py",
        "    if differs:\n        raise refused_change(differs)\n",
        "    pass\n",
        ("tests/training",),
    ),
    Guard(
        "an id that imports a module needs leave from the command line",
        "latentpg/training/config.py",
        '    if ":" in env and not trusted:\n',
        "    if False:\n",
        ("tests/test_hostile_files.py tests/training/test_commands.py",),
    ),
    Guard(
        "a log that is no text is told of",
        "latentpg/training/log.py",
        "except (OSError, UnicodeDecodeError, RefusedError) as error",
        "except (OSError, RefusedError) as error",
        ("tests/test_hostile_files.py",),
    ),
    Guard(
        "a log nested out of measure is told of",
        "latentpg/training/log.py",
        "OverflowError, RecursionError)",
        "OverflowError)",
        ("tests/test_hostile_files.py",),
    ),
    Guard(
        "a second Ctrl-C ends at once",
        "latentpg/training/signals.py",
        "        if caught and number == signal.SIGINT:\n",
        "        if False:\n",
        ("tests/training/test_signals.py",),
    ),
    Guard(
        "tensors of a checkpoint have the digest they were written with",
        "latentpg/runs/loading.py",
        "        if digest_of(stream) != entry.sha256:\n",
        "        if False:\n",
        ("tests/runs",),
    ),
    Guard(
        "a checkpoint is no link",
        "latentpg/runs/loading.py",
        "    if not is_folder(path):\n",
        "    if False:\n",
        ("tests/runs",),
    ),
    Guard(
        "a category out of range is not looked up",
        "latentpg/programs/categories.py",
        "    if is_concrete() and not _inside(index, size):\n",
        "    if False:\n",
        ("tests/programs/test_categories.py",),
    ),
    Guard(
        "recorded data hold no objects",
        "latentpg/studies/archive.py",
        '    if dtype.hasobject or dtype.kind not in "fiub":\n',
        "    if False:\n",
        ("tests/studies/test_recorded.py tests/studies/test_files.py",),
    ),
    Guard(
        "a run's time limit reaches its workers",
        "latentpg/training/build.py",
        "vectorization_mode=mode, timeout=timeout)",
        "vectorization_mode=mode)",
        ("tests/faults/test_workers.py -k worker_that_fails",),
    ),
    Guard(
        "what an environment raises is a fault of its own",
        "latentpg/rollout/edge.py",
        "        except Exception as error:\n",
        "        except ZeroDivisionError as error:\n",
        ("tests/faults/test_workers.py -k raises_in_this_process",),
    ),
    Guard(
        "so is what its constructor raises",
        "latentpg/rollout/environments.py",
        "    except Exception as error:  # whatever",
        "    except BufferError as error:  # whatever",
        ("tests/faults/test_workers.py -k cannot_be_made_in_this_process",),
    ),
    Guard(
        "a run that was too slow may go on with more time",
        "latentpg/training/folders.py",
        " and name not in MAY_CHANGE\n",
        "\n",
        ("tests/faults/test_workers.py -k longer_limit",),
    ),
    Guard(
        "a disk that is full is told of with what is left",
        "latentpg/training/loop.py",
        "    except OSError as error:\n        raise unwritten",
        "    except ZeroDivisionError as error:\n        raise unwritten",
        ("tests/faults/test_disks.py -k cannot_grow",),
    ),
    Guard(
        "a folder that cannot be written to is told of before anything runs",
        "latentpg/runs/folder.py",
        "        )\n    except OSError as error:\n",
        "        )\n    except BlockingIOError as error:\n",
        ("tests/faults/test_disks.py -k before_anything_is_done",),
    ),
    Guard(
        "going on clears what a killed write left",
        "latentpg/training/loop.py",
        "            clear_leftovers(self.folder)\n",
        "            pass\n",
        ("tests/faults/test_kills.py -k clears",),
    ),
    Guard(
        "one process at a time works on a run",
        "latentpg/runs/locks.py",
        "        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
        ("tests/faults/test_locks.py -k killed",),
    ),
    Guard(
        "a fit that finds no room is told of",
        "latentpg/cloning/loop.py",
        "    except OSError as error:\n        raise unwritten",
        "    except ZeroDivisionError as error:\n        raise unwritten",
        ("tests/faults/test_cloning.py -k cannot_grow",),
    ),
    Guard(
        "output that nobody reads ends quietly",
        "latentpg/cli.py",
        "    except OSError as error:  # of what is said itself",
        "    except ZeroDivisionError as error:  # of what is said itself",
        ("tests/faults/test_pipes.py",),
    ),
    Guard(
        "a configuration is not parsed without measure",
        "latentpg/runs/untrusted.py",
        "    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested too deep\n",
        "    except ValueError as error:\n",
        ("tests/test_hostile_files.py -k configuration",),
    ),
    Guard(
        "a configuration that is a pipe is not waited for",
        "latentpg/runs/untrusted.py",
        "        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):\n            raise RefusedError",
        "        if False:\n            raise RefusedError",
        ("tests/fuzz/test_command_lines.py -k never_ends",),
    ),
    Guard(
        "a log holds numbers alone",
        "latentpg/training/log.py",
        "    if isinstance(value, float) or (type(value) is int and abs(value) < 10**18):\n",
        "    if True:\n",
        ("tests/test_hostile_files.py -k no_log_holds",),
    ),
    Guard(
        "a state that no learner can take up is told of",
        "latentpg/training/facts.py",
        "    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:\n",
        "    except ZeroDivisionError as error:\n",
        ("tests/training/test_facts.py",),
    ),
    Guard(
        "so are facts that no run has written",
        "latentpg/training/facts.py",
        "        if name not in facts or not holds(facts[name]):\n",
        "        if False:\n",
        ("tests/training/test_facts.py",),
    ),
    Guard(
        "a space without entries is refused",
        "latentpg/policies/heads.py",
        "    if 0 in tuple(space.shape or ()):\n",
        "    if False:\n",
        ("tests/policies/test_spaces.py",),
    ),
    Guard(
        "workers' gradients count by their rows",
        "latentpg/learners/parallel.py",
        "group.sum(torch.cat([flat * rows, flat.new_tensor([float(rows)])]))",
        "group.sum(torch.cat([flat, flat.new_tensor([1.0])]))",
        ("tests/learners/test_parallel.py -k often",),
    ),
    Guard(
        "workers step along the gradient of all",
        "latentpg/learners/descent.py",
        "        whole, *gradients = mean_of(self.group, [loss, *own], rows)\n",
        "        whole, *gradients = [loss, *own]\n",
        ("tests/learners/test_parallel.py -k what_one_process_does",),
    ),
    Guard(
        "advantages are standardised over the rows of all workers",
        "latentpg/learners/parallel.py",
        "    if group.size == 1:\n        return standardized(advantage)\n",
        "    if True:\n        return standardized(advantage)\n",
        ("tests/learners/test_parallel.py -k standardised",),
    ),
    Guard(
        "a worker that waits in vain says so",
        "latentpg/learners/workers.py",
        "        except RuntimeError as error:  # every fault of torch.distributed is one",
        "        except KeyError as error:",
        ("tests/learners/test_parallel.py -k killed",),
    ),
    Guard(
        "a run goes on with as many workers",
        "latentpg/training/place.py",
        "    if then != now:\n",
        "    if False:\n",
        ("tests/training/test_workers.py -k another_number",),
    ),
    Guard(
        "a checkpoint has every worker's own state",
        "latentpg/training/place.py",
        "        if rank:\n",
        "        if False:\n",
        ("tests/training/test_workers.py -k own_parts",),
    ),
    Guard(
        "a graphics card that is not there is told of before anything is begun",
        "latentpg/numerics/devices.py",
        "    if not torch.cuda.is_available():\n",
        "    if False:\n",
        ("tests/numerics/test_devices.py",),
    ),
)
