#!/usr/bin/env bash
# Breaks the code that durability rests on, one place at a time, and runs the quick tests on each broken copy. A
# mutation that no test notices is a survivor; there must be none.
#
#   usage: scripts/mutants.sh [--list] [REGEX]      only the mutations whose name matches; default: all
#
# Works on a copy of the sources in target/mutants, and takes about an hour on two cores. One mutation can be noticed
# only with root, loop devices and xfsprogs (as in scripts/power.sh); without them it is left out. --list builds nothing;
# it only tells for each mutation whether the code that it should change is there. Exit status 1: a mutation survived, or
# the code that it should change is no longer there.
set -euo pipefail
cd "$(dirname "$0")/.."

list=
case ${1:-} in
    --list) list=yes; shift ;;
    -*) echo "usage: scripts/mutants.sh [--list] [REGEX]"; exit 2 ;;
esac
only=${1:-}
count=0 survivors=0

work=$PWD/target/mutants
tree=$work/tree
export CARGO_TARGET_DIR=$work/build CARGO_TERM_COLOR=never CARGO_PROFILE_DEV_DEBUG=0
export RINGKEEP_STATES=${RINGKEEP_STATES:-8000} RINGKEEP_FLIPS=8000 RINGKEEP_KILLS=2 RINGKEEP_CUT_EVERY=977
if [ -z "$list" ]; then
    rm -rf "$tree"
    mkdir -p "$tree" "$work/power"
    git ls-files -z | xargs -0 cp --parents -t "$tree"
fi

# Most suites are modules of a test binary.
binary() {
    case $1 in
        bounds | decoders | expiry | model | order_on_disk | quarantine | retention | scan) echo "engine $1::" ;;
        check | http_api | load | metrics | process | repair | security | service | space | taken_away) echo "server $1::" ;;
        *) echo "$1" ;;
    esac
}

# suites [FIRST]: runs the quick tests, FIRST before the others, and stops at the first that fails. Fails if a test
# fails.
suites() {
    local suite
    for suite in ${1:+"$1"} lib decoders crash damage check taken_away bounds model scan expiry retention order_on_disk formats kill http_api; do
        case $suite in
            lib) timeout 600 cargo test -q --locked --lib || return 1 ;;
            # This test runs on a loop device, because loop devices count flushes.
            flushes) RINGKEEP_POWER=$work/power timeout 600 \
                cargo test -q --locked --test server power::p1_every_answer -- --ignored || return 1 ;;
            *)
                # shellcheck disable=SC2046 # two words
                timeout 600 cargo test -q --locked --test $(binary "$suite") || return 1 ;;
        esac
    done
}

# mutant NAME FILE OLD NEW [FIRST]: replaces the first OLD in FILE by NEW. FIRST is the suite that should notice.
mutant() {
    local name=$1 file=$2 first=${5:-} begin=$SECONDS
    [[ $name =~ $only ]] || return 0
    count=$((count + 1))
    if [ -n "$list" ]; then
        if OLD=$3 perl -0ne '$hits += index($_, $ENV{OLD}) >= 0; END { exit !$hits }' "$file"; then
            echo "applies: $name ($file)"
        else
            echo "DOES NOT APPLY: $name ($file)"
            survivors=$((survivors + 1))
        fi
        return
    fi
    if ! (cd "$tree" && OLD=$3 NEW=$4 perl -0pi -e \
        'BEGIN { ($old, $new) = @ENV{"OLD", "NEW"} } $hits += s/\Q$old\E/$new/; END { exit !$hits }' "$file"); then
        echo "DOES NOT APPLY: $name ($file)"
        survivors=$((survivors + 1))
    elif ! (cd "$tree" && cargo build -q --locked) >"$work/log" 2>&1; then
        echo "DOES NOT BUILD: $name ($file)"
        survivors=$((survivors + 1))
    elif (cd "$tree" && suites "$first") >"$work/log" 2>&1; then
        echo "SURVIVED: $name ($file)"
        survivors=$((survivors + 1))
    else
        local by
        by=$(sed -nE 's/^---- ([a-z_0-9:]+) stdout ----$/\1/p' "$work/log" | head -n 1)
        if [ -n "$by" ]; then
            echo "noticed in $((SECONDS - begin)) s: $name, by $by"
        else
            # A test hangs, or a suite could not run.
            tail -n 20 "$work/log"
            echo "UNCLEAR: $name ($file): the run failed, but no test did"
            survivors=$((survivors + 1))
        fi
    fi
    cp "$file" "$tree/$file"
}

if [ -z "$list" ]; then
    echo "== unchanged"
    (cd "$tree" && suites) >"$work/log" 2>&1 || { tail -n 40 "$work/log"; echo "FAILED: the tests fail without any mutation"; exit 1; }
fi

echo "== group commit"
mutant 'a group is committed without its sync' src/db/commit.rs \
    'if self.sync_every_group {' 'if false {' crash
mutant 'interval syncs do nothing' src/db/commit.rs \
    'wal.sync().await.map_err(|error| self.fail(&error))' 'let _ = (wal, |error: Error| self.fail(&error)); Ok(())' crash
mutant 'a WAL takes groups before the one before it is synced' src/db/commit.rs \
    'before.sync().await?; // W3' 'let _ = before;' crash
mutant 'a failed commit is answered with success' src/db/commit.rs \
    'result.answer(Err(error.clone())); // C3' 'result.answer(Ok(())); // C3' crash
mutant 'what failed meanwhile is not looked at' src/db/commit.rs \
    'let written = self.failure().map_or(written, Err);' '' crash
mutant 'a WAL without a name is not noticed' src/db/commit.rs \
    'wal.file().check_in_place()?; // C4' '' taken_away
mutant 'writes are visible before they are committed' src/db/operate.rs \
    'self.begin_lookup(self.key(key), self.visible(), Wants::Value, now)' 'self.begin_lookup(self.key(key), SeqNo(u64::MAX), Wants::Value, now)' crash
mutant 'a write goes ahead of those that wait for room' src/db/operate.rs \
    'self.0.admission.nobody_waits()?;' ''
mutant 'writes that wait for room do not wait for their turn' src/shard/handler.rs \
    'let _turn = tokio::time::timeout_at(deadline, position.first()).await;' 'let _turn = &position;'

echo "== files of records"
mutant 'a sync covers what was written while it ran' src/record/file.rs \
    'self.durable.set(end);' 'self.durable.set(self.end.get());'
mutant 'a failed sync is forgotten' src/record/file.rs \
    'self.failure.borrow().clone().map_or(Ok(()), Err)' 'self.failure.take().map_or(Ok(()), Err)'
mutant 'a sync does nothing' src/record/file.rs \
    'let result = self.file.sync().await;' 'let result: std::io::Result<()> = Ok(());'
if [ -n "$list" ] || { [ "$(id -u)" = 0 ] && [ -e /dev/loop-control ] && command -v mkfs.xfs >/dev/null; }; then
    mutant 'a sync does not reach the device' src/storage/uring.rs \
        'if self.durable_writes {' 'if self.durable_writes || cfg!(unix) {' flushes
else
    echo "left out, because it needs root, loop devices and xfsprogs: a sync does not reach the device"
fi
mutant 'a mark claims more than is durable' src/record/file.rs \
    'durable: self.durable.get(), limit, ..last }' 'durable: end, limit: limit.max(end), ..last }'
mutant 'marks are written to the slot that is not durable yet' src/record/file.rs \
    'due && self.mark_is_synced()' 'due'
mutant 'marks always go to the same slot' src/record/mark.rs \
    'self.number % SLOTS * BLOCK_BYTES as u64' '0'
mutant 'no marks under load' src/record/file.rs \
    'due && self.mark_is_synced()' 'false && due'
mutant 'no mark on request' src/record/file.rs \
    'self.mark_requested.get() && 0 < news' 'false' damage
mutant 'no mark when commits pause' src/record/file.rs \
    'if self.mark.get().durable < self.durable.get() {' 'if false {' check
mutant 'the limit is not raised before it is crossed' src/record/file.rs \
    'self.raise_limit(end).await?; // E2' ''
mutant 'the mark that raises the limit is not synced' src/record/file.rs \
    'self.write_mark(end).await?;
            self.sync().await?;
        }
        assert!(end <= self.synced_mark.get().limit); // E2' 'self.write_mark(end).await?;
        }'
mutant 'the marks of a new file are not synced' src/record/file.rs \
    'file.sync().await.map_err(|error| Error::io(attempt("sync"), error))?;
        sync_names' 'sync_names'
mutant 'the name of a new file is not synced' src/record/file.rs \
    'sync_names(storage).await?;' ''
mutant 'the zeros of a longer file are not synced' src/record/file.rs \
    'let result = file
            .sync()
            .await
            .map_err(|error|' 'let result = Ok(()).map_err(|error: std::io::Error|'
mutant 'a file is used while it grows' src/record/file.rs \
    'let result = self.grow_to' 'self.allocated.set(length);
        let result = self.grow_to'
mutant 'a file grows after a failed sync' src/record/file.rs \
    'self.note_sync(result).map_err(|error| error.with_kind(ErrorKind::Poisoned))?;' \
    'result.map_err(|error: Error| error.with_kind(ErrorKind::Poisoned))?;'
mutant 'a group is durable whatever a growth beside it has lost' src/record/file.rs \
    'self.note_sync(
                result.map_err(|error| Error::io(format!("sync {} up to offset {end}", self.label), error)),
            )?;' 'result.map_err(|error| Error::io(format!("sync {} up to offset {end}", self.label), error))?;'
mutant 'a mark is written after a failed sync' src/record/file.rs \
    '        self.check_synced()?;
' ''
mutant 'a file that is still written to is used again' src/record/file.rs \
    '!self.growing.get() && self.marking.try_lock().is_ok()' 'true'
mutant 'a file that was removed or cut is not noticed' src/record/file.rs \
    'Ok(Some(bytes)) if self.allocated.get() <= bytes => return Ok(()),' '_ if !self.label.is_empty() => return Ok(()), Ok(Some(bytes)) if self.allocated.get() <= bytes => return Ok(()),'

echo "== replay"
mutant 'the end that a mark claims is ignored' src/record/replay.rs \
    'let witnessed = mark.durable.max(known_end.durable());' 'let witnessed = known_end.durable();'
mutant 'the end that the manifest claims is ignored' src/record/replay.rs \
    'let witnessed = mark.durable.max(known_end.durable());' 'let witnessed = mark.durable;' damage
mutant 'the durable end that later records claim is ignored' src/record/replay.rs \
    'if offset < witness {' 'if false && offset < witness {'
mutant 'the chain of records is not checked' src/record/replay.rs \
    'Ok(record) if record.chain == chain => {' 'Ok(record) if record.chain == chain || true => {'
mutant 'a file that was cut is not noticed' src/record/replay.rs \
    'if file_bytes < mark.limit {' 'if false {'
mutant 'one good slot is enough for the limit' src/record/replay.rs \
    'if bad_slot.is_none() {' 'if true {'
mutant 'a later version is cut like a torn record' src/record/replay.rs \
    'Flaw::LaterVersion(reason) => return Err(reason),' 'Flaw::LaterVersion(reason) => (reason, 0),' check
mutant 'an unreadable block ends a start' src/record/replay.rs \
    'Err(error) if is_unreadable(&error) => return self.step_by_block' 'Err(error) if false && is_unreadable(&error) => return self.step_by_block'
mutant 'ENODATA is not taken for a medium error' src/error.rs \
    'libc::EIO | libc::ENODATA' 'libc::EIO'
mutant 'a slot of zeros is taken for torn' src/record/replay.rs \
    'if !unread && !slot.is_empty()' 'if false && !slot.is_empty()'
mutant 'an old manifest overrides a mark' src/record/replay.rs \
    'if mark.durable <= end {' 'if end <= u64::MAX {'
mutant 'a gap in the writes of a WAL is not noticed' src/wal/reader.rs \
    'if first != expected {' 'if first < expected {' damage
mutant 'a replayed WAL is not synced' src/wal/reader.rs \
    'file.sync().await.map_err' 'Ok::<(), std::io::Error>(()).map_err' crash

echo "== manifest and names"
mutant 'edits are not synced' src/manifest/mod.rs \
    'log.append(record).await?;
    log.sync().await' 'log.append(record).await.map(|_| ())'
mutant 'edits carry no marks' src/manifest/mod.rs \
    'log.request_mark();' ''
mutant 'CURRENT names a manifest without its snapshot' src/manifest/mod.rs \
    'append(&log, &payload).await?;' 'if payload.is_empty() { append(&log, &payload).await?; }' crash
mutant 'missing files are not reported' src/presence.rs \
    'wals.chain(ssts).filter_map(error).collect()' 'wals.chain(ssts).filter_map(error).take(0).collect()' damage
mutant 'a WAL that nothing names is removed with its writes' src/presence.rs \
    '&& state.flushed < first' '&& state.flushed < first && first.0 == 0' crash
mutant 'a file is replaced before it is synced' src/storage/mod.rs \
    'file.sync().await.map_err(|error| Error::io(attempt("sync"), error))?;' ''
mutant 'a file is replaced before its name is synced' src/storage/mod.rs \
    '    sync_names(storage).await?;
    let uncertain' '    let uncertain'
mutant 'names are not synced at all' src/storage/mod.rs \
    'storage.sync_dir().await.map_err' 'Ok(drop(storage.clone())).map_err' crash
mutant 'a manifest goes on after a failure' src/manifest/mod.rs \
    'if let Some(first) = &self.failure {' 'if let Some(first) = self.failure.as_ref().filter(|_| false) {'
mutant 'a manifest is removed before it is replaced' src/manifest/mod.rs \
    '*self = Self::create(self.storage.clone()' 'let _ = self.storage.remove(old).await;
        *self = Self::create(self.storage.clone()' order_on_disk
mutant 'a check does not compare levels' src/check.rs \
    '&& !(seqno < newer && above < run)' '&& false && !(seqno < newer && above < run)'
mutant 'a check does not look for keys of other shards' src/check.rs \
    'if self.slots[Slot::of(key).index()] == self.owner.shard {' 'if true || self.slots[Slot::of(key).index()] == self.owner.shard {'

echo "== flush, compaction, recovery"
mutant 'what is not committed is flushed' src/db/flush.rs \
    'inner.writes.queue.committed_up_to(last).await?; // D3' '' crash
mutant 'the name of a flushed SST is not synced' src/db/flush.rs \
    'sync_names(storage).await?;
        Ok(meta)' 'Ok(meta)' crash
mutant 'an SST is not synced' src/sst/builder.rs \
    'self.file.sync().await' 'Ok::<(), std::io::Error>(())' crash
mutant 'the names of compacted SSTs are not synced' src/db/compact.rs \
    'match sync_names(&inner.storage).await {' 'match Ok::<(), Error>(drop(&inner.storage)) {' crash
mutant 'a WAL is released before its flush is in the manifest' src/db/flush.rs \
    'if let Err(error) = self.edit(edit).await {
            if let Some' 'let _ = self.release_wal(frozen).await;
        if let Err(error) = self.edit(edit).await {
            if let Some' crash
mutant 'the end of a replayed WAL is left open' src/db/recovery.rs \
    'end: KnownEnd::Exactly(end.offset) }' 'end: KnownEnd::AtLeast(end.offset) }' crash
mutant 'the WAL of a killed process is written to again' src/db/recovery.rs \
    'if self.state.clean_wal == Some(number)
            && end.bad_slot' 'if writes == 0
            && end.bad_slot' crash
mutant 'the end of a WAL is not noted in the manifest' src/db/mod.rs \
    'KnownEnd::AtLeast(known) => known < durable,' 'KnownEnd::AtLeast(known) => known < durable && false,' damage
mutant 'the next WAL carries no mark soon' src/db/commit.rs \
    'wal.file().request_mark();' '' damage
mutant 'a damaged WAL that nothing names is removed' src/wal/reader.rs \
    'Ok(mark) if FIRST_RECORD < mark.durable => Err(error),' '' crash
mutant 'a WAL of somebody else is used again' src/db/wals.rs \
    'if !leads.map_err' 'if false && !leads.map_err' crash
mutant 'a stop does not look at names' src/db/close.rs \
    'match self.check_store().await {' 'match Ok::<(), crate::error::Error>(()) {' taken_away
mutant 'a write is lost when its memtable is frozen' src/db/writes.rs \
    'self.frozen.borrow_mut().push_back(full.freeze());' 'drop(full.freeze());' model
mutant 'a WAL that is to be kept is removed' src/db/flush.rs \
    'if kept {
            edit.keep_wals' 'if false {
            edit.keep_wals'
mutant 'a WAL that is kept is used again' src/db/flush.rs \
    'if kept {
            frozen.held.take();' 'if false {
            frozen.held.take();'
mutant 'leftovers stay' src/db/recovery.rs \
    'if !stays(name) {' 'if false && !stays(name) {' order_on_disk

echo "== reads, expiry, compaction"
mutant 'an expired value is found' src/key.rs \
    'self.value == ValueKind::Value && self.expires.is_none_or(|expires| now < expires)' 'let _ = now; self.value == ValueKind::Value'
mutant 'an expired value outlives compaction' src/compaction/executor.rs \
    'if entry.kind.has_expired_at(now) {' 'if false && entry.kind.has_expired_at(now) {'
mutant 'a tombstone goes while a deeper level holds its key' src/compaction/executor.rs \
    'let stays = beyond || !tombstone || version.may_hold_below(compaction.target(), entry.key);' 'let stays = beyond || !tombstone;' model
mutant 'a split compaction drops tombstones beyond the split' src/compaction/executor.rs \
    'let stays = beyond || !tombstone' 'let stays = !tombstone'
mutant 'a part of a compaction takes the newest input' src/compaction/picker.rs \
    'self.inputs.iter().rposition(|file|' 'self.inputs.iter().position(|file|'
mutant 'a WAL that took writes is dropped in a rest' src/db/writes.rs \
    'if !shorter || 0 < active.memtable.entries() {' 'if !shorter {'
mutant 'a WAL that is removed stays open' src/db/wals.rs \
    'inner.writes.queue.forget(frozen.wal);' '' space
mutant 'sets are taken on a full disk' src/db/operate.rs \
    'inner.admission.admit_growth()?; // J4' '' space
mutant 'a cached value outlives its key' src/db/flush.rs \
    'inner.tree.values.remove(inner.config.key_hash.of(key), key); // F1' 'drop((key, inner.config.key_hash)); // F1' model
mutant 'a snapshot shows later writes' src/source/newest.rs \
    'if *snapshot < entry.seqno || last.as_deref()' 'if last.as_deref()'
mutant 'a merge takes entries in the order of their sources' src/source/merge.rs \
    'compare((x.key, x.seqno), (y.key, y.seqno)).then(a.cmp(&b)).is_lt()' 'x.key.cmp(y.key).then(a.cmp(&b)).is_lt()'
mutant 'a scan begins one block too late' src/sst/block.rs \
    'let (mut low, mut high) = (0, self.restarts.len());' 'let (mut low, mut high) = (1.min(self.restarts.len().saturating_sub(1)), self.restarts.len());'
mutant 'a source of a memtable begins before its order is made' src/memtable/order.rs \
    'if order.ordered < self.snapshot.min(self.memtable.last()) {' 'if order.ordered < self.snapshot.min(self.memtable.last()) && order.runs.is_empty() {'
mutant 'outputs of a failed compaction stay' src/compaction/executor.rs \
    'if result.is_err() {' 'if false && result.is_err() {'
mutant 'a compaction does not count older entries' src/compaction/executor.rs \
    'let passed = source.take_passed();' 'let passed = crate::source::newest::Passed::default();'
mutant 'a step passes over any number of versions' src/source/newest.rs \
    'for _ in 0..PASSED_MAX {' 'for _ in PASSED_MAX..usize::MAX {'
mutant 'a newer file of L0 is merged below an older one' src/compaction/picker.rs \
    'let compaction = of(&group[group.len() - count..])?;' 'let compaction = of(&group[..count])?;'
mutant 'an entry that stays above damage goes down' src/compaction/executor.rs \
    'let beyond = from_above && compaction.stays_above(entry.key);' 'let beyond = false;' quarantine
mutant 'an old entry goes above damage' src/compaction/executor.rs \
    'let beyond = from_above && compaction' 'let beyond = compaction' quarantine
mutant 'older and newer files than damage are merged' src/compaction/picker.rs \
    'damage().filter(|damage| damage.last < file.last).count()' 'damage().filter(|damage| damage.last < file.last).count().min(0)' quarantine
mutant 'a lookup passes damage' src/db/read.rs \
    'Some(damage) => Err(&**damage),' 'Some(_) => Ok(()),' quarantine
mutant 'a tombstone above damage is dropped' src/manifest/version.rs \
    '|| self.damage.iter().any(|damage| level < damage.level && damage.contains(key))' ''
mutant 'an unreadable block ahead fails a read' src/sst/window.rs \
    'if error.is_damage() && bytes < step => {' 'if false && error.is_damage() && bytes < step => {'
mutant 'a seek to the last key of a file passes over the file' src/sst/run.rs \
    'self.next = self.files.partition_point(|file| *file.largest < *key);' 'self.next = self.files.partition_point(|file| *file.largest <= *key);'
mutant 'an insert empties two pages' src/cache/values.rs \
    '        self.allocate_current();
        let mut oldest' '        let mut oldest'

echo "== backups, stores at rest, compaction on request"
mutant 'a snapshot does not wait for the flush' src/db/snapshot.rs \
    'if wanted <= state.flushed {' 'if true {'
mutant 'files of a snapshot are removed' src/db/snapshot.rs \
    'return Ok(Snapshot { state: state.without_wals() });' 'let mut copy = Vec::new();
                state.without_wals().snapshot().encode(&mut copy);
                let copy = crate::manifest::VersionEdit::decode(&copy).unwrap();
                return Ok(Snapshot { state: State::default().apply(&copy).unwrap() });'
mutant 'a server goes on in the place of a backup' src/data_dir.rs \
    'let marked = self.directory.contains(' 'let marked = Ok::<_, io::Error>(false); let _ = self.directory.contains(' commands
mutant 'a copy is not verified' src/backup/mod.rs \
    'None => Ok(()),
            Some(error) => Err(error),' '_ => Ok(()),' commands
mutant 'a store at rest is read without its logs' src/db/at_rest.rs \
    'for &number in state.wals.keys() {' 'for &number in state.kept_wals.keys() {'
mutant 'a compaction on request leaves tombstones in the last level' src/compaction/picker.rs \
    '&& (0 < file.tombstones || has_expired)' '&& has_expired'
mutant 'a compaction on request never ends' src/db/compact.rs \
    'if inner.tree.wanted.take().is_some() {' 'if inner.tree.wanted.get().is_some() {' commands
mutant 'new SeqNos of a resharded store are below old ones' src/cli/reshard.rs \
    'let last = old.iter().map(AtRest::last).max().unwrap_or_default();' 'let last = old.iter().map(AtRest::last).min().unwrap_or_default();' commands

echo "== the data directory"
mutant 'two processes may have one directory' src/data_dir.rs \
    'lock(directory.file(), path, try_lock)?;' 'let _ = lock(directory.file(), path, try_lock);'
mutant 'the lock of another directory counts' src/data_dir.rs \
    'if directory.is_in_place().map_err(|error| Error::io(attempt("look at"), error))? {' 'if true {'
mutant 'names are not looked at' src/shard/background.rs \
    'match db.check_names().await {' 'match Ok::<(), Error>(()) {' taken_away
mutant 'a directory that was moved is not noticed' src/storage/uring.rs \
    'if look_up(&self.0.directory, path).await? != Some(*id) {' 'if false && look_up(&self.0.directory, path).await? != Some(*id) {' taken_away
mutant 'a file that was replaced is not noticed' src/storage/uring.rs \
    'Ok(look_up(&self.0.directory, Path::new(&name.to_string())).await? == Some(id))' 'let _ = (id, name); Ok(true)' taken_away

if [ -n "$list" ]; then
    echo "$count mutations, $survivors of them do not apply"
else
    echo "$count mutations, $survivors survivors"
fi
[ "$survivors" = 0 ]
