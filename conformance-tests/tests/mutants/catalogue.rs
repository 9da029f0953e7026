//! What is broken in which adapter, and which case must tell so.

use std::env;

/// The variable that chooses what is broken in a process, and in its successors.
pub const VARIABLE: &str = "HANDOVER_MUTANT";

/// An adapter with something broken, and what the suite must say of it.
pub struct Mutant {
    pub name: &'static str,
    pub mutation: Mutation,
    pub verdict: Verdict,
}

#[derive(Clone, Copy)]
pub enum Verdict {
    /// This case must fail, with these words in its account.
    Fails(&'static str, &'static [&'static str]),
    /// All cases must pass in which another mutant fails.
    Passes,
}

macro_rules! mutants {
    (
        broken {
            $($(#[$doc:meta])* $mutation:ident, $name:literal: $case:literal, [$($word:literal),*];)*
        }
        sound { $($(#[$sound_doc:meta])* $sound:ident, $sound_name:literal;)* }
    ) => {
        /// One thing that may be odd about an adapter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[$doc])* $mutation,)*
            $($(#[$sound_doc])* $sound,)*
        }

        pub const CATALOGUE: &[Mutant] = &[
            $(Mutant {
                name: $name,
                mutation: Mutation::$mutation,
                verdict: Verdict::Fails($case, &[$($word),*]),
            },)*
            $(Mutant {
                name: $sound_name,
                mutation: Mutation::$sound,
                verdict: Verdict::Passes,
            },)*
        ];
    };
}

mutants! {
    broken {
        TimersNeverFire, "timers_never_fire":
            "adapter::timers_fire_when_their_time_has_come",
            ["the end of a timer of 20 ms: not within"];
        TimersFireLate, "timers_fire_late":
            "adapter::timers_fire_when_their_time_has_come", ["too late"];
        /// At once.
        TimersFireEarly, "timers_fire_early":
            "adapter::timers_fire_when_their_time_has_come", ["too early"];
        /// `now` and `timer` do not mean the same clock.
        TheClockRunsSlow, "the_clock_runs_slow":
            "adapter::timers_fire_when_their_time_has_come", ["too early"];
        DeadlinesAreIgnored, "deadlines_are_ignored":
            "drain::the_deadline_of_a_stop_cuts", ["stage", "not within"];
        /// What arrives between `signals` and the first poll is thrown away.
        EarlySignalsAreLost, "early_signals_are_lost":
            "drain::a_stop_between_start_and_run_waits",
            ["signals between `start` and `run` wait", "the end of process"];
        SignalsComeTwice, "signals_come_twice":
            "at_the_same_time::a_burst_of_signals_is_one", ["another restart is under way"];
        OtherHandlersAreSilenced, "other_handlers_are_silenced":
            "drain::the_programs_own_handlers_still_run", ["own signal"];
        /// `poll_readable` registers no waker.
        ReadinessWakesNobody, "readiness_wakes_nobody":
            "adapter::a_watched_descriptor_wakes_and_leaves_nothing",
            ["the wake-up of a task whose descriptor became readable"];
        TheWatchIsInherited, "the_watch_is_inherited":
            "descriptors::everything_is_close_on_exec", ["not close-on-exec", "eventpoll"];
        TheWatchOutlivesRun, "the_watch_outlives_run":
            "adapter::a_watched_descriptor_wakes_and_leaves_nothing",
            ["dropping 20 watches", "eventpoll"];
        OneDescriptorLeaksAGeneration, "one_descriptor_leaks_a_generation":
            "serve::fifty_restarts_leave_nothing_behind", ["own other things"];
        /// As a runtime without non-blocking sockets would have it.
        NonblockIsClearedAtTheStart, "nonblock_is_cleared_at_the_start":
            "descriptors::flags_stay", ["O_NONBLOCK", "did not see it in time"];
        NonblockIsClearedAtTheDrain, "nonblock_is_cleared_at_the_drain":
            "descriptors::flags_stay", ["O_NONBLOCK", "has become"];
        ListenersAreInherited, "listeners_are_inherited":
            "descriptors::everything_is_close_on_exec", ["not close-on-exec", "socket"];
        DetachLeavesTheRegistration, "detach_leaves_the_registration":
            "serve::after_the_commit_the_old_accepts_nothing", ["still watches"];
        DrainingClosesTheListener, "draining_closes_the_listener":
            "new_version_fails::it_dies_while_the_old_one_drains",
            ["the old accepts again", "closed name=web"];
        AcceptGoesOnWhileDraining, "accept_goes_on_while_draining":
            "serve::the_accept_queue_is_served_by_the_new", ["from another than"];
        AcceptsBeforeTheCommit, "accepts_before_the_commit":
            "adapter::nothing_is_accepted_before_the_commit", ["before the commit"];
        NamesAreSwapped, "names_are_swapped":
            "serve::ten_listeners_in_another_order", ["has accepted there"];
        InheritedSocketsAreBoundAnew, "inherited_sockets_are_bound_anew":
            "serve::a_fresh_start_binds_and_its_port_stays",
            ["it was announced as a TCP listener at"];
        EveryTenthConnectionIsDropped, "every_tenth_connection_is_dropped":
            "serve::a_restart_under_load_loses_nothing", ["requests lost"];
        EveryTenthDatagramIsDropped, "every_tenth_datagram_is_dropped":
            "descriptors::udp_loses_no_datagram", ["waiting for a datagram"];
        GuardsAreDroppedEarly, "guards_are_dropped_early":
            "serve::a_request_under_way_is_finished_by_the_old",
            ["a 5 s request", "closed before an answer"];
        GuardsAreKept, "guards_are_kept":
            "drain::an_old_process_without_connections_leaves_after_the_probation",
            ["an old process without any connection", "the other processes to go"];
        /// As a server that hears of a drain and shuts down gracefully at once.
        IdleConnectionsEndAtTheSwitch, "idle_connections_end_at_the_switch":
            "http::idle_connections_are_told_before_they_are_closed", ["closed before an answer"];
        /// Also if the client has sent more requests already.
        EveryAnswerOfADrainSaysClose, "every_answer_of_a_drain_says_close":
            "http::only_the_last_pipelined_answer_says_close", ["answer 1 of 4 says `close`"];
        /// A socket's wake-up is lost.
        AcceptWakesNobody, "accept_wakes_nobody":
            "adapter::a_connection_wakes_whoever_waits_for_it",
            ["the wake-up of a task that accepts"];
        /// `KNOWS_EVERY_TASK` is a lie.
        OnlyTheLastTaskIsKnown, "only_the_last_task_is_known":
            "adapter::an_accept_that_is_dropped_takes_no_wake_up_along", ["one of two tasks"];
        SpuriousWakeUpsSpin, "spurious_wake_ups_spin":
            "adapter::waiting_takes_no_processor_time", ["woken again and again"];
    }
    sound {
        /// What the others have in common.
        Nothing, "nothing_is_broken";
        /// Every task that waits is woken without a cause, again and again.
        WakesSpuriously, "spurious_wake_ups_are_allowed";
    }
}

impl Mutation {
    /// What is broken in this process; nothing if it is the test.
    pub fn of_this_process() -> Option<Self> {
        let name = env::var(VARIABLE).ok()?;
        CATALOGUE.iter().find(|mutant| mutant.name == name).map(|mutant| mutant.mutation)
    }
}
